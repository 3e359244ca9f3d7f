"""Searches against what can be worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge import seeding
from expunge.data import ArrayData
from expunge.data.builtin import Digits
from expunge.errors import ConfigError, DataError, MissingEvidence, Unsupported
from expunge.methods.scopes.last_layers import LastLayers
from expunge.searches.early import early_models
from expunge.searches.el2n import EL2N
from expunge.searches.gradients import example_gradients
from expunge.searches.grand import GraNd
from expunge.searches.memorisation import Memorisation
from expunge.searches.moderate import Moderate
from expunge.searches.units import Units
from expunge.tasks import Classification, Regression
from expunge.training.models import Mlp
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.scope import Everything
from expunge.training.session import Session

TASK = Classification(3)


class Echo(nn.Module):
    """Answers with its input; its last linear layer is the identity."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(size, size, bias=False)
        nn.init.eye_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def data(inputs, targets, **columns) -> ArrayData:
    return ArrayData({"inputs": torch.as_tensor(inputs).float(), "targets": torch.tensor(targets), **columns})


def blobs(count: int = 90, spread: float = 1.0) -> ArrayData:
    draws = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % 3
    inputs = 3 * torch.eye(3)[targets] + spread * torch.randn(count, 3, generator=draws)
    return data(inputs, targets.tolist())


def recipe(epochs: int = 10, hidden: tuple[int, ...] = (), **optim) -> Recipe:
    return Recipe(
        Mlp(inputs=3, outputs=3, hidden=hidden),
        TASK,
        Training(epochs=epochs, batch_size=30, optim=SGD(**optim)),
    )


def on_line(*values: float) -> list[list[float]]:
    return [[value, 0.0, 0.0] for value in values]


# moderate


def test_moderate_measures_from_the_median_of_the_class_coordinate_by_coordinate() -> None:
    # medians 2 (of five) and 15 = (10 + 20) / 2 (of four)
    examples = data(on_line(0, 1, 2, 3, 10, 0, 10, 20, 100), [0] * 5 + [1] * 4)
    search = Moderate(take="near", size=2)
    found = search.hardness(Echo(), examples, TASK, Session(0))
    assert (-found).tolist() == [2, 1, 0, 1, 8, 15, 5, 5, 85]
    assert search.search(Echo(), examples, TASK, Session(0)).ids.tolist() == [1, 2]
    easiest = Moderate(take="near", size=2, mode="easiest").search(Echo(), examples, TASK, Session(0))
    assert easiest.ids.tolist() == [5, 8]
    # ranked: 2 1 3 0 6 7 4 5 8; the middle seven are kept, or the middle two forgotten
    ends = Moderate(size=2).search(Echo(), examples, TASK, Session(0))
    assert ends.ids.tolist() == [2, 8]
    middle = Moderate(size=2, mode="easiest").search(Echo(), examples, TASK, Session(0))
    assert middle.ids.tolist() == [0, 6]


@pytest.mark.parametrize("n", [10, 11])
def test_moderate_ends_are_what_the_release_leaves_when_told_how_many_to_keep(n: int) -> None:
    examples = data(on_line(*(1.7**i for i in range(n))), [0] * n)
    distance = -Moderate(take="near").hardness(Echo(), examples, TASK, Session(0))
    for m in range(1, n):
        order, kept = distance.numpy().argsort(kind="stable"), n - m  # as the release does with its count
        start = n // 2 - kept // 2
        released = np.concatenate((order[:start], order[start + kept :]))
        ours = Moderate(size=m).search(Echo(), examples, TASK, Session(0))
        assert ours.ids.tolist() == sorted(released.tolist())
        middle = Moderate(size=m, mode="easiest").search(Echo(), examples, TASK, Session(0))
        assert len(middle) == m
        assert m > n // 2 or middle.overlap(ours) == 0 or m == n - m


def test_the_only_example_of_a_class_is_its_own_median() -> None:
    examples = data([[5.0, -1, 2], [1, 0, 0], [3, 0, 0]], [0, 1, 1])
    found = -Moderate(take="near").hardness(Echo(), examples, TASK, Session(0))
    assert found.tolist() == [0, 1, 1]
    # the release squeezes the axis of examples away and takes one number as the median of all coordinates
    rows, labels = examples.column("inputs").numpy(), examples.column("targets").numpy()
    squeezed = np.median(rows[(labels == 0).nonzero(), :].squeeze(), axis=0)
    assert np.linalg.norm(rows[0] - squeezed) == pytest.approx(math.sqrt(18))


def test_moderate_reads_features_and_leaves_batch_statistics_alone() -> None:
    examples = blobs()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    model[1].running_mean += 0.5
    before = model[1].running_mean.clone()
    found = Moderate(take="near", on="features").hardness(model, examples, TASK, Session(0))
    assert torch.equal(model[1].running_mean, before)
    assert model.training
    with torch.no_grad():
        phi = model[:2].eval()(examples.column("inputs")).double()
    own = phi[examples.column("targets") == 1]
    expected = (own - own.quantile(0.5, dim=0)).norm(dim=1)
    assert (-found)[examples.column("targets") == 1].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


# el2n and grand


def test_el2n_and_grand_of_untrained_linear_models_in_closed_form() -> None:
    examples, how = blobs(), recipe()
    x, y = examples.column("inputs").double(), F.one_hot(examples.column("targets"))
    session = Session(3, recipe=how)
    errors = []
    for i in range(2):
        head = how.initial(session.child("early", i)).head.double()
        errors.append((x @ head.weight.T + head.bias).softmax(1).sub(y).norm(dim=1).detach())
    error = torch.stack(errors)
    found = EL2N(models=2, epochs=0).prepare(examples, TASK, session)["error"]
    assert found.tolist() == pytest.approx(error.mean(0).tolist(), rel=1e-5)
    norms = error * (x.square().sum(1) + 1).sqrt()  # (p − y) ⊗ (x, 1)
    for batch_size in (7, 90):
        found = GraNd(models=2, epochs=0, batch_size=batch_size).prepare(examples, TASK, session)["norm"]
        assert found.tolist() == pytest.approx(norms.mean(0).tolist(), rel=1e-5)


def test_el2n_finds_wrong_labels_and_the_easily_learnt() -> None:
    examples = blobs(150, spread=0.5)
    wrong = torch.arange(0, 150, 15)
    targets = examples.column("targets").clone()
    targets[wrong] = (targets[wrong] + 1) % 3
    examples = data(examples.column("inputs"), targets.tolist())
    session = Session(0, recipe=recipe(30, lr=0.05))
    for search in (EL2N(size=10), GraNd(size=10, models=2)):
        noisy = replace(search, mode="easiest").search(Echo(), examples, TASK, session)
        clean = search.search(Echo(), examples, TASK, session)
        assert noisy.ids.tolist() == wrong.tolist()
        assert not torch.isin(clean.ids, wrong).any()


def test_grand_of_regression_and_of_the_last_layer_alone_in_closed_form() -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    targets = x.sum(1, keepdim=True)
    examples = ArrayData({"inputs": x, "targets": targets})
    with seeding.seeded(0):
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 1))
    model.train()  # single examples need evaluation mode: statistics of one example are meaningless
    found = example_gradients(model, examples, Regression(), Session(0), LastLayers(), 5)
    gradients = torch.cat(list(found))
    assert model.training
    with torch.no_grad():
        hidden = model[:3].eval()(x)
        residual = model[3](hidden) - targets
    expected = residual * torch.cat([hidden, torch.ones(12, 1)], 1)
    assert torch.allclose(gradients, expected, atol=1e-5)
    whole = torch.cat(list(example_gradients(model, examples, Regression(), Session(0), Everything(), 4)))
    assert whole.shape == (12, 3 * 5 + 5 + 5 + 5 + 5 + 1)


def test_a_model_that_vmap_refuses_is_refused_in_words() -> None:
    class Moody(Echo):
        def forward(self, x):
            return self.head(x) if x.sum().item() > 0 else self.head(-x)

    with pytest.raises(Unsupported, match="torch.vmap refuses the model"):
        list(example_gradients(Moody(), blobs(), TASK, Session(0), Everything(), 8))


def test_early_training_is_the_beginning_of_the_whole_one() -> None:
    examples, session = blobs(), Session(0)
    constant = recipe(3, lr=0.1)
    cosine = recipe(30, lr=0.1, schedule="cosine")
    early = early_models(cosine, examples, session, 1, 3)[0]
    same = constant.train(examples, session.child("early", 0))
    brought_down = recipe(3, lr=0.1, schedule="cosine").train(examples, session.child("early", 0))
    assert torch.allclose(early.head.weight, same.head.weight, atol=1e-6)
    assert not torch.allclose(early.head.weight, brought_down.head.weight, atol=1e-2)
    # a rate that rises over the first 4 of 20 epochs has come half of the way after 2
    rising, short = recipe(20, lr=0.1, warmup=0.2), recipe(2, lr=0.1, warmup=1 - 1e-9)
    early = early_models(rising, examples, session, 1, 2)[0]
    whole = short.train(examples, session.child("early", 0))
    assert torch.allclose(early.head.weight, whole.head.weight, atol=1e-6)


# memorisation


def test_memorisation_of_unique_and_of_doubled_examples_in_closed_form() -> None:
    """Each example has an input of its own, so a model without it knows nothing of it: p = 1/3."""
    n, rate = 24, 40.0
    place = torch.arange(n)
    place[1] = 0  # examples 0 and 1 are twins
    how = Recipe(Blank(n), TASK, Training(epochs=1, batch_size=100, optim=SGD(lr=rate, momentum=0.0)))
    twins = torch.arange(n)
    twins[1] = 0
    examples = data(F.one_hot(place, n), [0] * n, subjects=twins)
    session = Session(0, recipe=how)
    found = Memorisation(models=8).prepare(examples, TASK, session)["memorisation"]
    alone, both = (math.exp(k * rate / 12) / (math.exp(k * rate / 12) + 2) for k in (1, 2))
    assert found[2:].tolist() == pytest.approx([alone - 1 / 3] * (n - 2), abs=1e-5)
    assert found[0] < alone - 1 / 3 - 0.05  # its twin stands in for it
    assert found[0] <= both - 1 / 3
    worst = Memorisation(models=8, size=2).search(Echo(), examples, TASK, session)
    assert worst.ids.tolist() == [0, 1]
    # forgotten as one subject the twins cannot stand in for each other
    search = Memorisation(models=8, size=1, unit="subject", mode="easiest")
    assert search.search(Echo(), examples, TASK, session).ids.tolist() == [0, 1]


class Blank:
    """Makes a linear model of zeros without bias."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs

    def __call__(self) -> nn.Module:
        model = nn.Linear(self.inputs, 3, bias=False)
        nn.init.zeros_(model.weight)
        return model


def test_wrong_labels_are_memorised_most_and_equal_scores_do_not_decide() -> None:
    digits = Digits().load().train
    targets, draws = digits.column("targets")[:300].clone(), torch.Generator().manual_seed(0)
    wrong = torch.randperm(300, generator=draws)[:15]
    targets[wrong] = (targets[wrong] + 1 + torch.randint(9, (15,), generator=draws)) % 10
    examples, task = data(digits.column("inputs")[:300], targets.tolist()), Classification(10)
    training = Training(epochs=60, batch_size=50, optim=SGD(lr=0.2, schedule="cosine"))
    session = Session(1, recipe=Recipe(Mlp(inputs=64, outputs=10, hidden=(32,)), task, training))
    for score in ("confidence", "correct"):
        found = Memorisation(models=8, score=score).prepare(examples, task, session)["memorisation"]
        hits = torch.isin(found.argsort(descending=True)[:15], wrong).sum().item()
        print(f"\n{score}: {hits} of 15 wrong labels found, {found.unique().numel()} values")
        assert hits >= 10  # 0.75 by chance
        if score == "confidence":
            assert not torch.isin(found.argsort()[:30], wrong).any()
        # by correctness most are equal, and a set of the smallest would be the first of them
        assert (found.unique().numel() > 100) == (score == "confidence")
        assert ((found == 0).sum() > 150) == (score == "correct")


def test_the_parts_hold_whole_units_and_none_is_empty() -> None:
    examples = data(torch.zeros(12, 3), [0] * 6 + [1] * 6, subjects=torch.arange(12) // 3)
    units = Units.read(examples, TASK, "subject")
    inside = Memorisation(models=4)._parts(units, torch.Generator().manual_seed(0))
    assert all(torch.equal(inside[:, 3 * k], inside[:, 3 * k + j]) for k in range(4) for j in (1, 2))
    assert inside.sum(0).tolist() == [2] * 12
    with pytest.raises(DataError, match="4 units of kind 'subject' are too few"):
        Memorisation(models=8, fraction=0.125, unit="subject", size=1).check(examples, TASK)


@pytest.mark.parametrize(("search", "said"), [
    (lambda: EL2N(models=0), "models"), (lambda: EL2N(epochs=-1), "epochs"),
    (lambda: GraNd(batch_size=0), "batch_size"), (lambda: Memorisation(models=1), "models"),
    (lambda: Memorisation(models=3), "fraction"),
])  # fmt: skip
def test_fields_that_make_no_sense_are_named(search, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        search()
    assert caught.value.path == said


@pytest.mark.parametrize("search", [EL2N(size=5), GraNd(size=5), Memorisation(size=5)])
def test_a_search_that_trains_models_says_that_it_needs_the_recipe(search) -> None:
    assert search.needs_recipe
    search.check(blobs(), TASK)
    with pytest.raises(MissingEvidence, match="needs the original's recipe. Give recipe="):
        search.search(Echo(), blobs(), TASK, Session(0))


def test_searches_for_classes_refuse_tasks_without_them() -> None:
    examples = ArrayData({"inputs": torch.zeros(9, 3), "targets": torch.zeros(9, 1)})
    with pytest.raises(Unsupported, match="no classes"):
        Moderate().check(examples, Regression())
    with pytest.raises(Unsupported, match="Use grand"):
        EL2N().check(examples, Regression())
