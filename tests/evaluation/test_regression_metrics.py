"""The counterparts for regression: absolute error, Wasserstein distance, membership by loss."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import svm
from torch import nn

import expunge
from expunge import config
from expunge.data import ArrayData, Split
from expunge.errors import ConfigError
from expunge.evaluation.attacks.loss_svc import LossSVC
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metrics.regression import MAE, Wasserstein
from expunge.tasks import Classification, Regression, Task
from expunge.training.models import models
from expunge.training.optim import AdamW
from expunge.training.recipe import Training
from expunge.training.session import Session


class Shift(nn.Module):
    """``f(x) = factor · x + by``."""

    def __init__(self, by: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x + self.by


def judge(split: Split, subject: nn.Module, retrained: list[nn.Module], task: Task | None = None) -> Evidence:
    candidates = [Candidate("original", "original", subject), Candidate("subject", "unlearned", subject)]
    candidates += [Candidate(f"retrained {i}", "retrained", model) for i, model in enumerate(retrained)]
    return Evaluation(candidates, split, task or Regression(), Session(0)).evidence(candidates[1])


def noisy(members: int = 120, others: int = 90, unit: float = 1.0, small: float = 0.2) -> Split:
    """Members have ``small`` errors under the identity, others of 1; ``unit`` scales all numbers."""
    draw = torch.Generator().manual_seed(0)
    spread = torch.cat([torch.full((members,), small), torch.full((others,), 1.0)])
    x = torch.randn(members + others, 1, generator=draw)
    y = x + spread[:, None] * torch.randn(members + others, 1, generator=draw)
    x, y = (x * unit).double(), (y * unit).double()
    train = ArrayData({"inputs": x[:members].float(), "targets": y[:members].float()})
    test = ArrayData({"inputs": x[members:].float(), "targets": y[members:].float()})
    return Split.from_ids(train, range(0, members, 4), test=test)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_absolute_error_by_hand(shape: tuple[int, ...]) -> None:
    data = ArrayData({
        "inputs": torch.tensor([[1.0], [2.0], [3.0], [4.0]]),
        "targets": torch.tensor([1.5, 2.0, 1.0, 4.25]).reshape(shape),
    })  # fmt: skip
    split = Split.from_ids(data, [0, 2, 3], test=data)
    score = MAE(part="forget")(judge(split, Shift(), []))
    assert score.value == pytest.approx((0.5 + 2.0 + 0.25) / 3)
    assert score.per_example.tolist() == pytest.approx([0.5, 2.0, 0.25])
    assert (score.n, score.unit, score.target) == (3, "units", "retrained")
    assert score.interval[0] < score.value < score.interval[1]


def test_absolute_error_of_several_outputs_is_their_mean() -> None:
    data = ArrayData({"inputs": torch.zeros(2, 2), "targets": torch.tensor([[1.0, 3.0], [0.0, 2.0]])})
    split = Split.from_ids(data, [0], test=data)
    assert MAE(part="test")(judge(split, Shift(), [])).value == pytest.approx((2.0 + 1.0) / 2)


def test_wasserstein_of_a_shifted_sample_is_the_shift() -> None:
    score = Wasserstein()(judge(noisy(), Shift(0.75), [Shift()]))
    assert score.value == pytest.approx(0.75, abs=1e-6)
    assert score.interval == pytest.approx((0.75, 0.75), abs=1e-6)
    assert score.unit == "units"
    assert score.perfect is None  # a single retrained model has no other to be compared with


def test_wasserstein_averages_over_retrained_models_and_knows_their_own_distance() -> None:
    score = Wasserstein()(judge(noisy(), Shift(1.0), [Shift(0.0), Shift(0.5), Shift(2.0)]))
    assert score.value == pytest.approx((1.0 + 0.5 + 1.0) / 3, abs=1e-6)
    assert score.perfect == pytest.approx((0.5 + 2.0 + 1.5) / 3, abs=1e-6)


def test_wasserstein_of_a_scaled_normal_sample_is_the_closed_form() -> None:
    """``W1(N(0, 1), N(0, s²)) = |s − 1| √(2/π)``; within the sample's error."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 1, generator=draw)
    data = ArrayData({"inputs": x, "targets": x})
    split = Split.from_ids(data, range(2000), test=data)
    score = Wasserstein()(judge(split, Shift(factor=3.0), [Shift()]))
    assert score.value == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.03)
    assert score.interval[0] < score.value < score.interval[1]


def test_wasserstein_compares_collections_and_not_examples() -> None:
    """Answers exchanged between examples are at distance 0; the absolute error sees them."""
    x = torch.tensor([[-1.0], [1.0], [-2.0], [2.0]])
    data = ArrayData({"inputs": x, "targets": x})
    evidence = judge(Split.from_ids(data, [0, 1], test=data), Shift(factor=-1.0), [Shift()])
    assert Wasserstein()(evidence).value == pytest.approx(0.0)
    assert MAE(part="forget")(evidence).value == pytest.approx(2.0)


def test_two_honest_predictors_are_not_at_distance_zero() -> None:
    """The bias at zero: independent errors alone give a positive distance, which ``perfect`` states."""

    class Jitter(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.seed, self.one = seed, nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            draw = torch.Generator().manual_seed(self.seed)
            return self.one * (x + 0.5 * torch.randn(x.shape, generator=draw))

    score = Wasserstein()(judge(noisy(), Jitter(0), [Jitter(1), Jitter(2), Jitter(3)]))
    assert score.value > 0.02
    assert score.perfect > 0.02
    assert score.interval[0] <= score.value <= score.interval[1]
    assert score.interval[1] > 1.5 * score.interval[0]


@pytest.mark.parametrize("definition", ["corrected", "conformance"])
def test_loss_svc_is_sklearns_machine(definition: str) -> None:
    split = noisy(unit=3.0, small=0.5)
    evidence = judge(split, Shift(), [])
    metric = LossSVC(sample=50, definition=definition)
    errors = {
        part: (data.column("inputs") - data.column("targets")).abs().double()[:, 0]
        for part, data in split.parts().items()
    }
    inside = (
        torch.cat([errors["retain"], errors["forget"]]) if definition == "conformance" else errors["retain"]
    )
    draws = [
        values[torch.randperm(len(values), generator=evidence.session.generator("loss_svc", name))[:50]]
        for name, values in (("members", inside), ("test", errors["test"]))
    ]
    known = torch.cat(draws).numpy()[:, None]
    scale = 1.0 if definition == "conformance" else known.std(ddof=1)
    machine = svm.SVC(C=3, gamma=1.0, kernel="rbf").fit(known / scale, np.r_[np.ones(50), np.zeros(50)])
    expected = machine.predict(errors["forget"].numpy()[:, None] / scale)
    score = metric(evidence)
    assert score.value == pytest.approx(expected.mean())
    assert score.per_example.tolist() == expected.tolist()
    assert 0.6 < score.value < 1.0  # forget examples have the members' small errors
    assert score.variant == "loss-svc-member" + ("-conformance" if definition == "conformance" else "")
    assert score.target == "retrained"


def test_the_published_attack_depends_on_the_unit_of_the_targets() -> None:
    values = {
        (definition, unit): LossSVC(definition=definition)(
            judge(noisy(unit=unit, small=0.5), Shift(), [])
        ).value
        for definition in ("corrected", "conformance")
        for unit in (0.001, 1.0, 1000.0)
    }
    corrected = {value for (definition, _), value in values.items() if definition == "corrected"}
    published = [value for (definition, _), value in values.items() if definition == "conformance"]
    assert len(corrected) == 1
    assert 0 < min(corrected) < 1
    assert max(published) - min(published) > 0.05


def test_the_published_members_hold_the_forget_set_itself() -> None:
    """A model that never saw the forget set: the attack fitted on forget as members calls more of it so."""
    draw = torch.Generator().manual_seed(2)
    x = torch.zeros(300, 1)
    errors = torch.cat([
        5 + 0.1 * torch.rand(100, generator=draw),  # forget: errors that occur nowhere else
        torch.rand(100, generator=draw),  # retain: small ones
        2 + torch.rand(100, generator=draw),  # test: larger ones
    ])  # fmt: skip
    train = ArrayData({"inputs": x[:200], "targets": errors[:200, None]})
    test = ArrayData({"inputs": x[200:], "targets": errors[200:, None]})
    evidence = judge(Split.from_ids(train, range(100), test=test), Shift(), [])
    assert LossSVC(sample=100, definition="conformance")(evidence).value == 1.0
    assert LossSVC(sample=100)(evidence).value < 0.5


def test_what_cannot_be_computed_says_why() -> None:
    split = noisy()
    labels = ArrayData({"inputs": torch.randn(9, 3), "targets": torch.arange(9) % 3})
    classified = Split.from_ids(labels, [0, 1], test=labels)
    wrong = judge(classified, nn.Linear(3, 3), [nn.Linear(3, 3)], Classification(3))
    for metric in (MAE(part="forget"), Wasserstein(), LossSVC()):
        assert "the task is Classification" in metric(wrong).reason
    assert "no (other) retrained model" in Wasserstein()(judge(split, Shift(), [])).reason
    data = ArrayData({"inputs": torch.zeros(6, 1), "targets": torch.ones(6, 1)})
    even = Split.from_ids(data, [0], test=data)
    assert "same amount on every example" in LossSVC()(judge(even, Shift(), [])).reason
    assert "no holdout data" in MAE(part="holdout")(judge(split, Shift(), [])).reason
    with pytest.raises(ConfigError, match="sample"):
        LossSVC(sample=1)


ABALONE = Path(os.environ.get("EXPUNGE_DATA", "")) / "tabular" / "abalone.csv"


@pytest.mark.real_data
@pytest.mark.skipif(not ABALONE.is_file(), reason="EXPUNGE_DATA holds no tabular/abalone.csv")
def test_regression_metrics_on_abalone() -> None:
    """Rings of young abalones (up to 7) forgotten: retraining errs more on them, and every metric sees it."""
    with ABALONE.open() as file:
        rows = [["MFI".index(line[0]), *line[1:]] for line in csv.reader(file)]
    table = torch.tensor([[float(value) for value in row] for row in rows])
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    x, y = table[:, :-1], table[:, -1:]
    x = (x - x.mean(0)) / x.std(0)
    train, test = ((x[part], y[part]) for part in (slice(0, 1500), slice(3000, None)))
    ids = (train[1][:, 0] <= 7).nonzero()[:, 0]
    split = Split.from_ids(train, ids, test=test)
    task = Regression()
    spec = config.build(models, {"kind": "mlp", "inputs": 8, "outputs": 1})
    optim = AdamW(lr=0.01)
    recipe = expunge.Recipe(spec, task, Training(epochs=10, optim=optim))
    original = expunge.train(recipe, train)
    result = expunge.unlearn(original, split, {"kind": "finetune", "epochs": 1}, task=task, recipe=recipe)
    asked = [MAE(part=part) for part in ("forget", "retain", "test")] + [Wasserstein(), LossSVC()]
    table = expunge.evaluate(result, recipe, retrained=2, metrics=asked).tables[0]
    (before,), after = table.by_role("original"), table.by_role("retrained")
    for row in table.rows:
        assert all(score.reason is None for score in row.scores.values())
    forget = "absolute error.forget.mean"
    assert all(row.scores[forget].value > before.scores[forget].value + 0.3 for row in after)
    distance = "prediction distance.forget.wasserstein"
    assert all(row.scores[distance].value < 0.5 * before.scores[distance].value for row in after)
    member = "membership.forget.loss-svc-member"
    assert all(row.scores[member].value < before.scores[member].value for row in after)
