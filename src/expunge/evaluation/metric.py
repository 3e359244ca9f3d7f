"""What a metric is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch

from expunge.errors import ConfigError, ExpungeError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.score import Score, Target, Unit
from expunge.registry import Registry


class Metric(ABC):
    """One number about one model. Subclasses are frozen dataclasses.

    A metric that cannot be computed raises one of the package's errors; the score then is ``nan``
    with the error as its reason. It never returns a number in place of one.

    The page "how to read this" is made from the docstring: its first paragraph, the equation, and the
    sections ``Ideal:`` (what a perfect unlearner scores), ``Cost:``, ``Differs:`` and ``References:``.
    """

    target: ClassVar[Target] = "retrained"
    unit: ClassVar[Unit] = "fraction"

    @abstractmethod
    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        """Name, part and variant of the score."""

    def counts(self) -> Unit:
        """The unit of the score, where it depends on the metric's fields."""
        return self.unit

    @abstractmethod
    def measure(self, evidence: Evidence) -> Score:
        """The score.

        Raises:
            ExpungeError: it cannot be computed; the message says why.
        """

    def __call__(self, evidence: Evidence) -> Score:
        try:
            score = evidence.score(self)
            error, df = _error(self, score, evidence)
            return replace(score, error=error, df=df, metric=registered(self))
        except ExpungeError as error:
            name, part, variant = self.labels(evidence)
            return Score(
                name=name,
                part=part,
                variant=variant,
                value=math.nan,
                n=0,
                target=self.target,
                unit=self.counts(),
                reason=str(error),
                metric=registered(self),
            )


def registered(metric: Metric) -> str:
    """Its name in the registry; empty for a metric that was handed over without being registered."""
    try:
        return metrics.name_of(metric)
    except ConfigError:
        return ""


def _error(metric: Metric, score: Score, evidence: Evidence) -> tuple[float | None, float | None]:
    """Standard error over examples of the difference from the retrained models' mean, and its df.

    With a value for each example it is that of the mean of the paired differences, clustered by
    subject where the data has subjects. Where all of them are 0 or 1 one disagreement in each
    direction is added (Bonett and Price, 2012), so that models that agree on every example of a small
    part do not count as known to agree everywhere. Without such values it is the interval's width / 3.92.
    """
    plain = score.from_interval
    mine = score.per_example
    others = [other for other in evidence.retrained if other is not evidence.subject]
    if mine is None or not others or len(mine) < 2 or score.part not in evidence.parts:
        return plain
    try:
        found = [evidence.of(other).score(metric).per_example for other in others]
    except ExpungeError:
        return plain  # their own rows say why
    values = [value.double() for value in found if value is not None and value.shape == mine.shape]
    if len(values) < len(others):
        return plain
    differences = mine.double() - torch.stack(values).mean(0)
    clusters = evidence.clusters(score.part)
    if clusters is not None and len(clusters.unique()) < 2:
        return plain
    binary = all(bool(((v == 0) | (v == 1)).all()) for v in (mine, *values))
    error = statistics.standard_error(differences.numpy(), clusters, agreements=binary)
    df = float(len(mine) - 1) if clusters is None else statistics.degrees_of_freedom(clusters)
    return error, df


metrics: Registry[Metric] = Registry(
    "metric",
    Metric,  # type: ignore[type-abstract]
    ("expunge.evaluation.metrics", "expunge.evaluation.attacks"),
)
