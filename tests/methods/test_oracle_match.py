from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge.data import ArrayData, CropFlip, Split
from expunge.errors import ConfigError, MissingEvidence
from expunge.methods.gradient.oracle_match import OracleMatch
from expunge.tasks import Classification, Regression
from expunge.training.engine import Engine
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

ONE_STEP = Training(epochs=1, batch_size=100, optim=SGD(lr=1.0, momentum=0.0))
"""Solves ``min ½ mean (w − y)²`` exactly for inputs that are all 1."""


def constant(n=20, forget=5):
    """A model that can only learn the mean of its targets; the forgotten ones are far from the rest."""
    y = torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    y[:forget] += 4
    recipe = Recipe(lambda: nn.Linear(1, 1, bias=False), Regression(), ONE_STEP)
    data = ArrayData({"inputs": torch.ones(n, 1), "targets": y})
    session = Session(seed=0, recipe=recipe)
    return recipe.train(data, session), Split.from_ids(data, range(forget)), recipe, session, y[:, 0]


def test_where_every_oracle_says_the_mean_of_the_rest_so_does_the_result():
    model, split, recipe, session, y = constant()
    assert model.weight.item() == pytest.approx(float(y.mean()), abs=1e-5)
    # min (w − t)²: the gradient is 2 (w − t), so a rate of ½ is there in one step
    method = OracleMatch(epochs=1, oracles=3, optim=SGD(lr=0.5, momentum=0.0))
    result = method.unlearn(model, split, recipe.task, session)
    assert result.weight.item() == pytest.approx(float(y[5:].mean()), abs=1e-5)
    assert abs(float(y.mean() - y[5:].mean())) > 0.5


def test_a_step_follows_the_mean_error_of_both_parts_against_the_mean_of_the_oracles():
    draws = torch.Generator().manual_seed(1)
    X, y = torch.randn(16, 3, generator=draws), torch.arange(16) % 2
    split = Split.from_ids((X, y), range(4))
    task = Classification(2)
    recipe = Recipe(lambda: nn.Linear(3, 2, bias=False), task, Training(epochs=1, optim=SGD(lr=0.5)))
    session = Session(seed=0, recipe=recipe)
    model = recipe.initial(Session(seed=9))
    method = OracleMatch(epochs=1, oracles=4, batch_size=4, optim=SGD(lr=0.1, momentum=0.0))
    result = method.unlearn(model, split, task, session)
    oracles = [recipe.train(split.retain, session.child("oracle", i)).weight.detach() for i in range(4)]
    mean, W = torch.stack(oracles).mean(0), model.weight.detach()
    assert torch.stack(oracles).std(0).min() > 1e-3  # they differ, so the mean matters
    # 4 forget examples and 3 · 4 of 12 retain ones: all of them, each as much as the other
    gradient = 2 * (W - mean) @ X.T @ X / (16 * 2)
    assert torch.allclose(result.weight, W - 0.1 * gradient, atol=1e-5)


def test_an_epoch_brings_three_retain_examples_for_each_to_forget_in_random_order():
    """The authors' loader gives the same batches in every epoch: first the forget set, then the rest."""
    model, split, recipe, session, _ = constant(n=64, forget=8)
    seen = []

    class Seen(OracleMatch):
        def objective(self, step):
            seen.append((step.forget.batch["ids"].tolist(), step.retain.batch["ids"].tolist()))
            return super().objective(step)

        def unlearn(self, *arguments):
            from expunge.methods import methods

            methods._entries["seen"] = Seen
            try:
                return super().unlearn(*arguments)
            finally:
                del methods._entries["seen"]

    Seen(epochs=2, batch_size=4, oracles=1).unlearn(model, split, recipe.task, session)
    assert [(len(forget), len(retain)) for forget, retain in seen] == [(4, 12)] * 4
    first, second = (seen[0][0] + seen[1][0], seen[2][0] + seen[3][0])
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second
    assert first != sorted(first)
    assert (
        len({i for _, retain in seen for i in retain}) == 48
    )  # of 56: no example again before all were seen


def test_the_oracles_see_the_augmented_pictures_that_the_model_sees():
    pictures = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    data = ArrayData({"inputs": pictures, "targets": torch.arange(12) % 2}, augment=CropFlip(padding=2))
    recipe = Recipe(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), Classification(2), Training(epochs=1)
    )
    session = Session(seed=0, recipe=recipe)
    oracle = recipe.train(Split.from_ids(data, range(4)).retain, session.child("oracle", 0))
    # a model that equals its only oracle stays where it is, whatever the crop
    result = OracleMatch(epochs=2, oracles=1, optim=SGD(lr=0.5)).unlearn(
        oracle, Split.from_ids(data, range(4)), recipe.task, session
    )
    for name, value in result.state_dict().items():
        assert torch.allclose(value, oracle.state_dict()[name], atol=1e-6)


def test_gradients_of_half_batches_add_up():
    model, split, recipe, session, _ = constant()
    method = OracleMatch(epochs=2, oracles=2, batch_size=4, optim=SGD(lr=0.1))
    halved = replace(session, engine=Engine(accumulate=2))
    whole, halves = (method.unlearn(model, split, recipe.task, s).weight.item() for s in (session, halved))
    assert whole == pytest.approx(halves, abs=1e-5)
    assert abs(whole - model.weight.item()) > 0.1


def test_without_a_recipe_there_are_no_oracles():
    model, split, recipe, session, _ = constant()
    with pytest.raises(MissingEvidence, match="recipe"):
        OracleMatch().unlearn(model, split, recipe.task, replace(session, recipe=None))


@pytest.mark.parametrize("fields", [{"oracles": 0}, {"retain_ratio": 0}, {"epochs": 0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        OracleMatch(**fields)
