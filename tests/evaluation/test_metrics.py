"""Every metric against a hand-worked case, on models whose outputs are chosen."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, MissingEvidence
from expunge.evaluation.attacks.membership import SVC, Threshold
from expunge.evaluation.attacks.relearn import RelearnTime
from expunge.evaluation.evaluate import Candidate, Evaluation, evaluate
from expunge.evaluation.metric import metrics
from expunge.evaluation.metrics.cost import Cost
from expunge.evaluation.metrics.distance import AverageGap, JensenShannon
from expunge.evaluation.metrics.utility import Accuracy, Loss
from expunge.tasks import Classification, Regression
from expunge.training.optim import SGD
from expunge.training.session import Session

TASK = Classification(3)


class Echo(nn.Module):
    """Answers with its inputs as logits, times a factor; counts its forward passes."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.factor * x


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 3, generator=generator) * 2
    y = torch.randint(3, (90,), generator=generator)
    train = ArrayData({"inputs": x[:60], "targets": y[:60]})
    return Split.from_ids(train, range(12), test=ArrayData({"inputs": x[60:], "targets": y[60:]}))


def evidence(split: Split, *, original: nn.Module, retrained: list[nn.Module], subject: nn.Module, cost=None):
    candidates = [Candidate("original", "original", original)]
    candidates += [
        Candidate(f"retrained {i}", "retrained", m, {"seconds": 2.0}) for i, m in enumerate(retrained)
    ]
    candidates.append(Candidate("subject", "unlearned", subject, cost or {}))
    evaluation = Evaluation(candidates, split, TASK, Session(0))
    return evaluation.evidence(candidates[-1])


def test_accuracy_and_loss_are_those_of_the_outputs(split: Split) -> None:
    found = evidence(split, original=Echo(), retrained=[Echo()], subject=Echo(-1.0))
    x, y = split.forget.column("inputs"), split.forget.column("targets")
    accuracy = Accuracy(part="forget")(found)
    assert accuracy.value == pytest.approx(((-x).argmax(1) == y).double().mean().item())
    assert accuracy.n == 12
    loss = Loss(part="forget")(found)
    assert loss.value == pytest.approx(nn.functional.cross_entropy(-x, y).item(), rel=1e-5)
    assert loss.interval[0] < loss.value < loss.interval[1]


def test_jensen_shannon_is_scipys_averaged_over_examples_and_references(split: Split) -> None:
    found = evidence(split, original=Echo(), retrained=[Echo(0.5), Echo(2.0)], subject=Echo(-1.0))
    x = split.forget.column("inputs").double()
    p, a, b = (torch.softmax(f * x, 1).numpy() for f in (-1.0, 0.5, 2.0))
    expected = np.mean([(jensenshannon(p, q, axis=1) ** 2).mean() for q in (a, b)])
    assert JensenShannon()(found).value == pytest.approx(expected, rel=1e-4)


def test_jensen_shannon_of_a_regressor_is_not_computed_and_says_so(split: Split) -> None:
    x = torch.randn(20, 2)
    data = ArrayData({"inputs": x, "targets": x.sum(1)})
    regression = Split.from_ids(data, range(5), test=data)
    rows = evaluate(
        [Candidate("original", "original", nn.Linear(2, 1)), Candidate("r", "retrained", nn.Linear(2, 1))],
        regression, Regression(), Session(0), [JensenShannon()],
    )  # fmt: skip
    (score,) = rows[0].scores.values()
    assert math.isnan(score.value)
    assert "no Jensen-Shannon" in score.reason


def test_threshold_separates_at_the_best_balanced_accuracy() -> None:
    retain, test = torch.tensor([0.9, 0.8, 0.7, 0.2]).double(), torch.tensor([0.6, 0.5, 0.75]).double()
    forget = torch.tensor([0.65, 0.7, 0.95]).double()
    # t = 0.7: hits 3/4, alarms 1/3, gain 5/12; t = 0.8: hits 1/2, alarms 0, gain 1/2: the best
    assert Threshold().members(retain, test, 3, forget).tolist() == [False, False, True]


def test_threshold_calls_nobody_a_member_where_members_look_worse() -> None:
    low, high = torch.full((5,), 0.1).double(), torch.full((5,), 0.9).double()
    assert not Threshold().members(low, high, 5, high).any()


def test_svc_is_the_published_machine_on_the_first_retain_examples() -> None:
    from sklearn import svm

    generator = np.random.default_rng(0)
    retain, test, forget = generator.beta(5, 1, 80), generator.beta(2, 2, 50), generator.beta(3, 1, 40)
    machine = svm.SVC(C=3, gamma="auto", kernel="rbf")
    machine.fit(np.r_[retain[:50], test][:, None], np.r_[np.ones(50), np.zeros(50)])
    expected = machine.predict(forget[:, None]) == 1
    found = SVC().members(*(torch.from_numpy(a) for a in (retain, test)), 50, torch.from_numpy(forget))
    assert found.tolist() == expected.tolist()


def test_svc_takes_equally_many_where_there_are_fewer_retain_than_test_examples() -> None:
    retain, test = torch.linspace(0.8, 1, 10).double(), torch.linspace(0, 0.5, 30).double()
    assert SVC().members(retain, test, 10, torch.tensor([0.9, 0.05]).double()).tolist() == [True, False]


def test_membership_counts_those_outside_and_reads_p_of_the_true_label(split: Split) -> None:
    found = evidence(split, original=Echo(), retrained=[Echo()], subject=Echo())
    p = {
        part: torch.softmax(data.column("inputs"), 1)
        .gather(1, data.column("targets")[:, None])[:, 0]
        .double()
        for part, data in split.parts().items()
    }
    member = Threshold().members(p["retain"], p["test"], 30, p["forget"])
    score = Threshold()(found)
    assert score.value == pytest.approx(1 - member.double().mean().item())
    assert score.id == "membership.forget.threshold-confidence"


def test_average_gap_is_the_mean_of_four_absolute_gaps(split: Split) -> None:
    models = {"a": Echo(0.5), "b": Echo(-0.5), "subject": Echo(-1.0)}
    found = evidence(split, original=Echo(), retrained=[models["a"], models["b"]], subject=models["subject"])
    measures = [Accuracy(part=p) for p in ("forget", "retain", "test")] + [Threshold()]
    expected = []
    for measure in measures:
        mine = measure(found).value
        others = [measure(found.of(other)).value for other in found.retrained]
        expected.append(abs(mine - sum(others) / 2))
    score = AverageGap()(found)
    assert score.value == pytest.approx(sum(expected) / 4)
    assert score.interval[0] <= score.value <= score.interval[1] * 1.5


def test_a_single_retrained_model_has_nothing_to_be_compared_with(split: Split) -> None:
    rows = evaluate(
        [Candidate("original", "original", Echo()), Candidate("retrained 1", "retrained", Echo(0.5))],
        split, TASK, Session(0), [AverageGap()],
    )  # fmt: skip
    assert rows[0].scores["average gap.threshold"].reason is None
    assert "no (other) retrained model" in rows[1].scores["average gap.threshold"].reason


def test_cost_ratio_divides_by_the_mean_retraining(split: Split) -> None:
    found = evidence(
        split, original=Echo(), retrained=[Echo(), Echo()], subject=Echo(), cost={"seconds": 1.0}
    )
    assert Cost(measure_of="ratio")(found).value == pytest.approx(0.5)
    assert Cost()(found).value == 1.0
    assert "not made here" in Cost(measure_of="ratio")(found.of(found.original)).reason


def test_relearning_counts_the_steps_by_hand_and_leaves_the_model_alone() -> None:
    # One weight, loss ½ (w x − y)² on x = y = 1: each full-batch step of rate η maps 1 − w to (1 − η)(1 − w).
    data = ArrayData({"inputs": torch.ones(8, 1), "targets": torch.ones(8)})
    split = Split.from_ids(ArrayData({"inputs": torch.ones(16, 1), "targets": torch.ones(16)}), range(8))
    original, subject = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.ones_(original.weight), nn.init.zeros_(subject.weight)
    metric = RelearnTime(
        budget=50, margin=0.0, tolerance=0.005, batch_size=8, optim=SGD(lr=0.1, momentum=0.0), repeats=2
    )
    # ½ 0.9^(2k) ≤ 0.005  ⇔  k ≥ ln 100 / (2 ln (1/0.9)) = 21.85
    rows = evaluate(
        [Candidate("original", "original", original), Candidate("u", "unlearned", subject)],
        Split(split.forget, split.retain, data), Regression(), Session(0), [metric],
    )  # fmt: skip
    assert rows[1].scores["relearn time.forget"].value == 22
    assert rows[0].scores["relearn time.forget"].value == 0
    assert subject.weight.item() == 0.0


def test_relearning_is_censored_at_the_budget() -> None:
    split = Split.from_ids(ArrayData({"inputs": torch.ones(16, 1), "targets": torch.ones(16)}), range(8))
    original, subject = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.ones_(original.weight), nn.init.zeros_(subject.weight)
    rows = evaluate(
        [Candidate("original", "original", original), Candidate("u", "unlearned", subject)],
        split, Regression(), Session(0), [RelearnTime(budget=3, optim=SGD(lr=1e-4))],
    )  # fmt: skip
    assert rows[1].scores["relearn time.forget"].value == 3
    assert rows[1].scores["relearn time.forget"].censored
    assert not rows[0].scores["relearn time.forget"].censored


def test_one_forward_pass_for_each_model_and_part_feeds_all_metrics(split: Split) -> None:
    models = [Echo(), Echo(0.5), Echo(0.4), Echo(-1.0)]
    roles = ("original", "retrained", "retrained", "unlearned")
    rows = evaluate(
        [Candidate(f"{r} {i}", r, m) for i, (r, m) in enumerate(zip(roles, models, strict=True))],
        split, TASK, Session(0),
        [Accuracy(part="forget"), Accuracy(part="retain"), Accuracy(part="test"), SVC(), Threshold(),
         JensenShannon(), AverageGap(), Loss(part="forget"), Loss(part="test")],
    )  # fmt: skip
    assert [model.calls for model in models] == [3, 3, 3, 3]
    assert all(sum(row.histograms["forget"]) == 12 for row in rows)


def test_outputs_that_are_nan_are_a_reason_not_a_number(split: Split) -> None:
    found = evidence(split, original=Echo(), retrained=[Echo()], subject=Echo(math.nan))
    assert "NaN" in Loss(part="forget")(found).reason
    assert "NaN" in Threshold()(found).reason


def test_without_test_data_only_what_needs_it_is_missing(split: Split) -> None:
    rows = evaluate(
        [Candidate("original", "original", Echo()), Candidate("r", "retrained", Echo())],
        Split(split.forget, split.retain), TASK, Session(0), [Accuracy(part="forget"), Threshold()],
    )  # fmt: skip
    assert rows[0].scores["accuracy.forget"].reason is None
    assert "no test data" in rows[0].scores["membership.forget.threshold-confidence"].reason


def test_an_evaluation_needs_the_original(split: Split) -> None:
    with pytest.raises(MissingEvidence, match="original"):
        evaluate([Candidate("u", "unlearned", Echo())], split, TASK, Session(0), [])


def test_every_metric_has_a_title_an_interval_rule_and_a_round_trip() -> None:
    from expunge.config import build, dump

    for name in metrics.names():
        metric = metrics.get(name)()
        assert build(metrics, dump(metric)) == metric
        assert "Cost:" in metrics.get(name).__doc__ or name == "cost"


def test_relearn_budget_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        RelearnTime(budget=0)


def test_the_report_knows_the_average_gap_that_the_default_metrics_measure(split: Split) -> None:
    """The summary, the heat map and the first table are built on it."""
    from expunge.evaluation.evaluate import DEFAULT
    from expunge.evaluation.table import Table
    from expunge.report import layout

    models = [Echo(), Echo(0.5), Echo(0.4), Echo(-1.0)]
    roles = ("original", "retrained", "retrained", "unlearned")
    candidates = [Candidate(f"{r} {i}", r, m) for i, (r, m) in enumerate(zip(roles, models, strict=True))]
    table = Table("x", "", 12, 60, tuple(evaluate(candidates, split, TASK, Session(0), DEFAULT)))
    found = layout.average_gap(layout.columns(table))
    assert found is not None
    assert found.id == "average gap.svc"
    assert found in layout.groups(table)[0].columns
