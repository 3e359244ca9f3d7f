"""Regression's counterparts of accuracy and output distance: absolute error and Wasserstein distance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from torch import Tensor

from expunge.errors import Unsupported
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats
from expunge.evaluation.subject import Subject
from expunge.tasks.regression import Regression

RESAMPLES = 500
"""Bootstrap draws of the Wasserstein distance, each of which sorts."""


def absolute_errors(evidence: Evidence, subject: Subject, part: str) -> Tensor:
    """``mean_d |f(x_i)_d − y_id|`` of each example, ``(N,)`` in double precision.

    Raises:
        Unsupported: the task is no regression.
    """
    _regression(evidence)
    outputs = subject.read(part).outputs.double()
    targets = evidence.parts[part].column("targets").double()
    return (outputs - targets.reshape(outputs.shape)).abs().mean(-1)


@metrics.register("mae")
@dataclass(frozen=True, kw_only=True)
class MAE(Metric):
    """Mean absolute error on one part, in the units of the targets.

    ``mean_i mean_d |f(x_i)_d − y_id|``. Interval: bootstrap over examples, or over data subjects.

    Ideal: as close to retraining as possible. A retrained model may err more on all parts than the
        original; a smaller error than its own is then a sign of what was left.
    Cost: nothing beyond the forward pass.
    References: Tarun et al., Deep Regression Unlearning, ICML 2023, arXiv:2210.08196.
    """

    part: Literal["forget", "retain", "test", "holdout"] = "forget"
    unit = "units"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "absolute error", self.part, "mean"

    def measure(self, evidence: Evidence) -> Score:
        values = absolute_errors(evidence, evidence.subject, self.part)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.mean(values.numpy(), clusters=evidence.clusters(self.part)),
            n=len(values),
            target="retrained",
            unit="units",
            per_example=values,
        )


@metrics.register("wasserstein")
@dataclass(frozen=True, kw_only=True)
class Wasserstein(Metric):
    """Wasserstein-1 distance between the model's predictions and the retrained models', as distributions.

    ``mean_r mean_d ∫ |F_d(z) − F_rd(z)| dz`` with ``F`` the distribution function of the predictions
    over the examples of a part, of each output ``d``; in the units of the targets. It compares the two
    collections and not the predictions one by one, so a model that exchanges the answers of two
    examples is at distance 0. Interval: bootstrap over examples, less the bias of the draws.

    Ideal: not 0, which no finite number of examples gives for two honest retrains. ``perfect`` is the mean
        distance between two other retrained models, where there are two.
    Cost: nothing beyond the forward passes; 500 sorts of the predictions for each retrained model.
    Differs: the published number compares with a single retrained model, and prints 0 for retraining.
    References: Tarun et al., Deep Regression Unlearning, ICML 2023, arXiv:2210.08196.
    """

    part: Literal["forget", "retain", "test"] = "forget"
    unit = "units"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "prediction distance", self.part, "wasserstein"

    def measure(self, evidence: Evidence) -> Score:
        _regression(evidence)
        others = [outputs.double().numpy() for outputs in evidence.compared(self.part)]
        mine = evidence.subject.read(self.part).outputs.double().numpy()
        pairs = [_distance(a, b) for a, b in combinations(others, 2)]
        value = _mean_distance(mine, others)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=value,
            interval=_interval(mine, others, value),
            n=len(mine),
            target="retrained",
            unit="units",
            perfect=float(np.mean(pairs)) if pairs else None,
        )


def _distance(first: Floats, second: Floats) -> float:
    """Wasserstein-1 of each column's two samples of equal size, averaged over columns."""
    from scipy.stats import wasserstein_distance

    columns = zip(first.T, second.T, strict=True)
    return float(np.mean([wasserstein_distance(a, b) for a, b in columns]))


def _mean_distance(mine: Floats, others: list[Floats]) -> float:
    return float(np.mean([_distance(mine, other) for other in others]))


def _interval(mine: Floats, others: list[Floats], value: float) -> tuple[float, float] | None:
    """Percentiles of paired bootstrap draws, moved so that their mean is the value; never below 0."""
    n = len(mine)
    if n < 2:
        return None
    draw = np.random.default_rng(0)
    rows = [draw.integers(n, size=n) for _ in range(RESAMPLES)]
    draws = np.array([_mean_distance(mine[r], [other[r] for other in others]) for r in rows])
    low, high = statistics.percentile(draws - (draws.mean() - value))
    return max(0.0, low), high


def _regression(evidence: Evidence) -> None:
    if not isinstance(evidence.task, Regression):
        raise Unsupported(
            f"only regression has real-valued errors; the task is {type(evidence.task).__name__}."
        )
