"""Any metric over several runs: mean, the interval by hand, and what single models keep."""

import math

import pytest
from scipy.stats import t
from tests.evaluation.answers import evidence, margins, split, sure

from expunge.errors import ConfigError
from expunge.evaluation.metrics.cost import Cost
from expunge.evaluation.metrics.over_runs import OverRuns
from expunge.evaluation.metrics.utility import Accuracy, Loss

PARTS = split([0] * 8, forget=4, test=2)

HALF, ALL, NONE = (sure([1] * wrong + [0] * (8 - wrong)) for wrong in (2, 0, 4))


def test_mean_and_interval_by_hand() -> None:
    runs = [HALF, ALL, NONE]
    found = evidence(PARTS, runs[0], [ALL, ALL], siblings=runs[1:])["subject"]
    score = OverRuns(metric=Accuracy(part="forget"))(found)
    assert score.details["runs"] == [0.5, 1.0, 0.0]
    assert score.value == 0.5
    assert (score.name, score.part, score.variant) == ("accuracy", "forget", "over-runs")
    assert score.interval == (0.0, 1.0)  # 4.30 * 0.5 / sqrt(3) to either side, and more


def test_the_interval_holds_the_chance_of_runs_and_of_examples() -> None:
    runs = [margins([0.1 * k] * 8) for k in (10, 11, 12)]  # every example alike: all chance is in the runs
    found = evidence(PARTS, runs[0], [ALL, ALL], siblings=runs[1:])["subject"]
    score, singles = OverRuns(metric=Loss(part="forget"))(found), []
    for run in runs:
        singles.append(Loss(part="forget")(evidence(PARTS, run, [ALL, ALL])["subject"]).value)
    mean = sum(singles) / 3
    spread = math.sqrt(sum((value - mean) ** 2 for value in singles) / 2 / 3) * t.ppf(0.975, 2)
    assert score.interval == pytest.approx((mean - spread, mean + spread), rel=1e-5)

    same = evidence(PARTS, HALF, [ALL, ALL], siblings=[HALF, HALF])["subject"]  # and here none is
    assert OverRuns(metric=Accuracy(part="forget"))(same).interval == pytest.approx(
        Accuracy(part="forget")(same).interval
    )


def test_both_together_are_the_root_of_the_squares() -> None:
    runs = [sure([1] * wrong + [0] * (40 - wrong)) for wrong in (9, 10, 11)]
    parts = split([0] * 40, forget=20, test=2)
    found = evidence(parts, runs[0], [runs[0]] * 2, siblings=runs[1:])["subject"]
    own = [Accuracy(part="forget")(evidence(parts, run, [run] * 2)["subject"]) for run in runs]
    low = sum(score.interval[0] for score in own if score.interval) / 3
    between = t.ppf(0.975, 2) * 0.05 / math.sqrt(3)
    score = OverRuns(metric=Accuracy(part="forget"))(found)
    assert score.value == pytest.approx(0.5)
    assert score.interval is not None
    assert score.interval[0] == pytest.approx(0.5 - math.hypot(0.5 - low, between))


def test_single_models_have_the_metrics_own_score() -> None:
    found = evidence(PARTS, HALF, [ALL, NONE], siblings=[ALL])
    for name in ("original", "retrained 1"):
        plain, over = (
            Accuracy(part="forget")(found[name]),
            OverRuns(metric=Accuracy(part="forget"))(found[name]),
        )
        assert (over.value, over.interval) == (plain.value, plain.interval)


def test_unit_and_direction_are_those_of_the_metric() -> None:
    assert OverRuns(metric=Loss(part="test")).counts() == "nats"
    assert OverRuns(metric=Accuracy(part="forget")).target == Accuracy(part="forget").target


def test_what_it_cannot_be_over() -> None:
    with pytest.raises(ConfigError, match="over runs already"):
        OverRuns(metric=OverRuns(metric=Accuracy(part="forget")))
    with pytest.raises(ConfigError, match="Ask for cost by itself"):
        OverRuns(metric=Cost(measure_of="seconds"))
