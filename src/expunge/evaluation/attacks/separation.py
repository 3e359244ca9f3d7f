"""What all attacks have in common that give every example a score: members against non-members."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from expunge.errors import ConfigError, DataError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score

ROC_POINTS = 200
"""At most so many points of a curve are kept, denser towards a false positive rate of 0."""


@dataclass(frozen=True, kw_only=True)
class Separation(Metric):
    """How well per-example scores tell members from non-members.

    Args:
        part: the members: ``forget``, or ``retain`` for what unlearning does to those who stay.
        against: the non-members, on which nothing was trained.
        read: ``auc``, ``balanced_accuracy`` (at the best threshold), or ``tpr``: the true positive rate at
            the false positive rate ``fpr``.
        fpr: for ``tpr``.
    """

    part: Literal["forget", "retain"] = "forget"
    against: Literal["test", "holdout"] = "test"
    read: Literal["auc", "balanced_accuracy", "tpr"] = "auc"
    fpr: float = 0.01
    attack: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not 0 < self.fpr < 1:
            raise ConfigError(f"is a rate between 0 and 1, got {self.fpr}.", "fpr")

    @abstractmethod
    def scores(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Scores of the members ``(N,)`` and of the non-members ``(M,)``: higher is a surer member."""

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        read = f"tpr@{self.fpr:g}" if self.read == "tpr" else self.read.replace("_", "-")
        against = "" if self.against == "test" else f"-{self.against}"
        return "membership", self.part, f"{self.named()}-{read}{against}"

    def named(self) -> str:
        """The attack's name in the variant of the score."""
        return self.attack or metrics.name_of(self).replace("_", "-")

    def measure(self, evidence: Evidence) -> Score:
        members, others = (values.double() for values in self.scores(evidence))
        for values, where in ((members, self.part), (others, self.against)):
            if not bool(values.isfinite().all()):
                raise DataError(f"the attack's scores of {where} are NaN or infinite for some examples.")
        if float(torch.cat([members, others]).std()) == 0:
            raise DataError("the attack gives every example the same score, so nothing can be told apart.")
        value, interval = self._value(members, others)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=value,
            interval=interval,
            n=len(members),
            target="retrained",
            unit="fraction",
            perfect=self.chance(evidence, len(others)),
            details={"roc": roc(members, others)},
        )

    def chance(self, evidence: Evidence, others: int) -> float | None:
        """What a perfect unlearner scores where that is not the nominal value; ``others`` non-members.

        A member that is exchangeable with them is above the threshold a little more often than they are.
        """
        if self.read != "tpr":
            return None
        return (int(self.fpr * others + 1e-9) + 1) / (others + 1)

    def _value(self, members: Tensor, others: Tensor) -> tuple[float, tuple[float, float] | None]:
        positives, negatives = members.numpy(), others.numpy()
        if self.read == "auc":
            return statistics.auc(positives, negatives)
        if self.read == "tpr":
            return statistics.tpr_at(positives, negatives, self.fpr)
        return statistics.balanced_accuracy(positives, negatives)


def roc(members: Tensor, others: Tensor) -> list[list[float]]:
    """Points ``[false positive rate, true positive rate]`` from (0, 0) to (1, 1)."""
    thresholds = torch.unique(torch.cat([members, others])).flip(0)
    fpr = 1 - torch.searchsorted(others.sort().values, thresholds).double() / len(others)
    tpr = 1 - torch.searchsorted(members.sort().values, thresholds).double() / len(members)
    if len(thresholds) > ROC_POINTS:
        wanted = torch.logspace(-5, 0, ROC_POINTS, dtype=torch.float64)
        keep = torch.searchsorted(fpr, wanted, right=True).clamp(max=len(fpr) - 1).unique()
        fpr, tpr = fpr[keep], tpr[keep]
    points = [[0.0, 0.0], *[[float(x), float(y)] for x, y in zip(fpr, tpr, strict=True)], [1.0, 1.0]]
    return [point for i, point in enumerate(points) if i == 0 or point != points[i - 1]]
