"""What a metric is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from expunge.errors import ExpungeError
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.score import Score, Target, Unit
from expunge.registry import Registry


class Metric(ABC):
    """One number about one model. Subclasses are frozen dataclasses.

    A metric that cannot be computed raises one of the package's errors; the score then is ``nan``
    with the error as its reason. It never returns a number in place of one.
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
            return evidence.score(self)
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
            )


metrics: Registry[Metric] = Registry(
    "metric",
    Metric,  # type: ignore[type-abstract]
    ("expunge.evaluation.metrics", "expunge.evaluation.attacks"),
)
