"""Searches that score a set as a whole, against what can be worked out by hand."""

import math

import pytest
import torch
from torch import nn

from expunge import seeding
from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError
from expunge.searches.entanglement import Entanglement, _entanglement
from expunge.searches.greedy import Greedy, _picked, _whitened
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


def on_line(*values: float) -> list[list[float]]:
    return [[value, 0.0, 0.0] for value in values]


# entanglement


def spread(phi: torch.Tensor, inside: torch.Tensor) -> tuple[float, float]:
    """The entanglement as its definition says, and as the authors' code computes it."""
    f, r = phi[inside], phi[~inside]
    within = sum((part - part.mean(0)).square().sum(1).mean() for part in (f, r))
    found = []
    for middle in (phi.mean(0), (f.mean(0) + r.mean(0)) / 2):
        between = sum((part.mean(0) - middle).square().sum() for part in (f, r)) / 2
        found.append(float(within / between))
    return found[0], found[1]


def test_entanglement_by_hand() -> None:
    # distances from 0: 4 1 1 4; ranked 1 2 0 3; runs {1, 2}, {0, 2}, {0, 3}
    examples = data(on_line(-4, -1, 1, 4), [0, 1, 2, 0])
    easiest = Entanglement(size=2, mode="easiest").search(Echo(), examples, TASK, Session(0))
    # {-4, 1} against {-1, 4}: within 6.25 + 6.25, between ½ (2.25 + 2.25)
    assert easiest.ids.tolist() == [0, 2]
    assert easiest.details["entanglement"] == pytest.approx(12.5 / 2.25)
    assert easiest.details["rank"] == 1
    worst = Entanglement(size=2).search(Echo(), examples, TASK, Session(0))
    assert worst.ids.tolist() in ([1, 2], [0, 3])  # equal means: as entangled as can be, a finite number
    assert 1e6 < worst.details["entanglement"] < math.inf


@pytest.mark.parametrize("unit", ["example", "subject"])
def test_every_run_of_the_ranking_has_the_entanglement_of_its_definition(unit: str) -> None:
    draws = torch.Generator().manual_seed(0)
    phi = torch.randn(40, 3, generator=draws).double() ** 3
    examples = data(phi, [0] * 40, subjects=(torch.rand(40, generator=draws) * 9).long())
    units, m = Units.read(examples, TASK, unit), 3
    phi = examples.column("inputs").double()
    ranked = units.mean((phi - phi.mean(0)).norm(dim=1)).argsort()
    scores = _entanglement(phi - phi.mean(0), units, ranked, m)
    assert len(scores) == len(units) - m + 1
    expected = []
    for k in range(len(scores)):
        inside = torch.isin(units.of, ranked[k : k + m])
        ours, theirs = spread(phi, inside)
        share = inside.double().mean().item()
        assert theirs == pytest.approx(2 * (share**2 + (1 - share) ** 2) * ours)
        expected.append(ours)
    assert scores.tolist() == pytest.approx(expected, rel=1e-9)
    for mode, best in (("worst", max(expected)), ("easiest", min(expected))):
        found = Entanglement(size=m, unit=unit, mode=mode).search(Echo(), examples, TASK, Session(0))
        assert found.details["entanglement"] == pytest.approx(best, rel=1e-6)


# greedy


def test_greedy_takes_gradients_that_cancel_or_add_up() -> None:
    vectors = torch.tensor([[1.01, 0], [-1, 0.1], [0.5, 0], [0, 0.6], [0.9, 0]]).double()
    picked, change = _picked(vectors, 2, "worst")
    assert picked.tolist() == [1, 2]  # a ranking takes 2 and 3, whose sum is longer
    assert change == pytest.approx(0.25 + 0.01)
    assert vectors.square().sum(1).argsort()[:2].tolist() == [2, 3]
    picked, change = _picked(vectors, 2, "easiest")
    assert picked.tolist() == [0, 4]  # a ranking takes 0 and 1, which cancel
    assert change == pytest.approx(1.91**2)


def test_greedy_measures_the_change_in_the_fisher_metric() -> None:
    draws = torch.Generator().manual_seed(0)
    gradients = torch.randn(30, 4, generator=draws) * torch.tensor([10.0, 1, 1, 0.1])
    fisher = (gradients.T @ gradients / 30).double()
    damped = fisher + 0.1 * fisher.diagonal().mean() * torch.eye(4)
    total = gradients[:7].double().sum(0)
    expected = total @ torch.linalg.solve(damped, total)
    white = _whitened(gradients, 0.1)
    assert white[:7].sum(0).square().sum().item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_its_easiest_set_a_model_says_something_else_and_without_its_worst_the_same() -> None:
    examples = blobs(120, spread=2.0)
    optim = SGD(lr=0.1, weight_decay=0.01, schedule="cosine")
    how = Recipe(Mlp(inputs=3, outputs=3, hidden=()), TASK, Training(epochs=60, batch_size=30, optim=optim))
    original = how.train(examples, Session(0))
    inputs = examples.column("inputs")

    def change(ids: torch.Tensor) -> float:
        """Mean KL divergence of a model trained without these examples."""
        kept = examples.subset(examples.ids[~torch.isin(examples.ids, ids)])
        again = how.train(kept, Session(0))
        with torch.no_grad():
            before, after = (m(inputs).log_softmax(1) for m in (original, again))
        return float((before.exp() * (before - after)).sum(1).mean())

    worst, easiest = (
        Greedy(size=12, mode=mode).search(original, examples, TASK, Session(0))
        for mode in ("worst", "easiest")
    )
    draws = torch.Generator().manual_seed(1)
    random = [change(torch.randperm(120, generator=draws)[:12]) for _ in range(3)]
    least, most = change(worst.ids), change(easiest.ids)
    print(f"\nKL after retraining: worst {least:.5f}, random {random}, easiest {most:.5f}")
    assert least < min(random)
    assert most > max(random)
    assert worst.details["divergence"] < easiest.details["divergence"]
    assert most / 4 < easiest.details["divergence"] < 4 * most  # a first-order guess, of the right size


def test_greedy_projects_long_gradients_and_keeps_their_products() -> None:
    examples = blobs()
    with seeding.seeded(0):
        model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 3))
    whole = Greedy(scope=Everything())._gradients(model, examples, TASK, Session(0))
    few = Greedy(scope=Everything(), dims=64)._gradients(model, examples, TASK, Session(0))
    assert whole.shape == (90, 283)
    assert few.shape == (90, 64)
    ratio = few.square().sum() / whole.square().sum()
    assert 0.7 < ratio.item() < 1.3


def test_models_that_tell_no_examples_apart_are_refused() -> None:
    examples = ArrayData({"inputs": torch.zeros(9, 3), "targets": torch.zeros(9, 1)})
    with pytest.raises(DataError, match="same representation"):
        Entanglement(size=2).search(nn.Linear(3, 1), examples, Regression(), Session(0))
    with pytest.raises(DataError, match="no gradient at any example"):
        Greedy(size=2).search(Zero(), examples, Regression(), Session(0))


def test_fields_that_make_no_sense_are_named() -> None:
    for fields in ({"damping": 0.0}, {"dims": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            Greedy(**fields)


class Zero(nn.Module):
    """Says 0 whatever its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0 * self.head(x)
