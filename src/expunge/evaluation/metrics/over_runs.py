"""Any metric over several runs of a method instead of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from expunge.errors import ConfigError
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.cost import Cost
from expunge.evaluation.metrics.utility import Accuracy
from expunge.evaluation.score import Score, Unit


@metrics.register("over_runs")
@dataclass(frozen=True, kw_only=True)
class OverRuns(Metric):
    """The mean of another metric over all runs of a method, each with a seed of its own.

    ``v̄ = (1/R) Σ_r v(θ_r)``. Interval: with ``s`` the standard deviation of the ``R`` values, ``t`` the
    quantile of Student's distribution with ``R − 1`` degrees of freedom, and ``l̄``, ``ū`` the means of the
    ends of the metric's own intervals,

    ``[v̄ − √((v̄ − l̄)² + t² s²/R),  v̄ + √((ū − v̄)² + t² s²/R)]``

    (the method of variance estimates recovery), within 0 and 1 where every example's value is. All runs are
    judged on the same examples, so the chance of these does not shrink with ``R``; it is counted in part
    twice, as ``s`` holds some of it too. Three runs say little of their spread, ``t`` is 4.3 there. The
    original and every retrained model are single, and have the metric's own score: the spread between
    retrained models is the noise that all is measured in. ``details["runs"]`` has each value; a run that
    diverged gave no model and is not among them.

    Ideal: that of the metric.
    Cost: ``R`` times that of the metric; the experiment's ``repeats`` says how many runs there are.
    References: Zou and Donner, Construction of confidence limits about effect measures, Statistics in
        Medicine 27, 2008.

    Args:
        metric: what is measured of each run.

    Raises:
        ConfigError: the metric is itself one over runs, or ``cost``, which is known of the first run alone.
    """

    metric: Metric = Accuracy(part="forget")

    def __post_init__(self) -> None:
        if isinstance(self.metric, OverRuns):
            raise ConfigError("is over runs already.", "metric")
        if isinstance(self.metric, Cost):
            raise ConfigError("is of one run. Ask for cost by itself.", "metric")
        object.__setattr__(self, "target", self.metric.target)

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        name, part, variant = self.metric.labels(evidence)
        return name, part, "-".join(word for word in (variant, "over-runs") if word)

    def counts(self) -> Unit:
        return self.metric.counts()

    def measure(self, evidence: Evidence) -> Score:
        first = evidence.score(self.metric)
        single = evidence.subject in evidence.retrained
        others = () if single else evidence.siblings
        scores = [first, *(evidence.of(other).score(self.metric) for other in others)]
        value = float(np.mean([score.value for score in scores]))
        return replace(
            first,
            variant=self.labels(evidence)[2],
            value=value,
            interval=_interval(scores, value),
            censored=any(score.censored for score in scores),
            details={**_details(scores), "runs": [score.value for score in scores]},
            per_example=None,
        )


def _interval(scores: Sequence[Score], value: float) -> tuple[float, float] | None:
    """That of the first where it is alone; of several also without intervals of their own."""
    from scipy.stats import t

    if len(scores) == 1:
        return scores[0].interval
    spread = float(np.std([score.value for score in scores], ddof=1)) / len(scores) ** 0.5
    between = float(t.ppf(0.975, len(scores) - 1)) * spread
    ends = np.array([score.interval or (score.value, score.value) for score in scores]).mean(0)
    low, high = (float(np.hypot(end - value, between)) for end in ends)
    if all(_is_bounded(score.per_example) for score in scores):
        return max(value - low, 0.0), min(value + high, 1.0)
    return value - low, value + high


def _is_bounded(values: Tensor | None) -> bool:
    return values is not None and bool(((values >= 0) & (values <= 1)).all())


def _details(scores: Sequence[Score]) -> dict[str, Any]:
    """Those of the first run; a curve is the mean of all where they have the same places."""
    found = dict(scores[0].details)
    curves = [score.details.get("curve") for score in scores]
    if found.get("curve") and all(curves):
        places = [[x for x, _ in curve] for curve in curves]  # type: ignore[union-attr]
        if all(other == places[0] for other in places):
            heights = np.mean([[y for _, y in curve] for curve in curves], axis=0)  # type: ignore[union-attr]
            found["curve"] = [[x, float(y)] for x, y in zip(places[0], heights, strict=True)]
    return found
