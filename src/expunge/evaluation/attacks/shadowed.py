"""What attacks with reference models have in common: whose readings they use, and how sure they are."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expunge.errors import MissingEvidence
from expunge.evaluation.attacks.separation import Separation
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.score import Score
from expunge.evaluation.shadows import Shadows
from expunge.evaluation.statistics import LEVEL


@dataclass(frozen=True, kw_only=True)
class Shadowed(Separation):
    """A separation whose scores come from reference models trained on random halves of the data.

    Its interval says how far the value would move with other examples and with other reference models:
    ``v ± √(h² + (t_{R−1} s)²)`` with ``h`` the half-width over examples and ``s`` the jackknife's standard
    error ``√((R−1)/R Σ_r (v_r − v̄)²)`` of the values ``v_r`` without model ``r``. Fewer models widen it;
    where they are too few to leave one out, there is none.

    References: Efron and Stein, The jackknife estimate of variance, Annals of Statistics 9, 1981.
    """

    def shadows(self, evidence: Evidence) -> Shadows:
        """The reference models that the attack reads.

        Raises:
            MissingEvidence: there are none.
        """
        if evidence.shadows is None:
            raise MissingEvidence("there are no shadow models. Give the experiment shadows: {count: 16}.")
        return evidence.shadows

    @abstractmethod
    def judge(self, evidence: Evidence, shadows: Shadows) -> tuple[Tensor, Tensor]:
        """Scores of the members ``(N,)`` and the non-members ``(M,)``, given the reference models.

        Raises:
            MissingEvidence: some example has too few models that were, or were not, trained on it.
        """

    def scores(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        return self.judge(evidence, self.shadows(evidence))

    def measure(self, evidence: Evidence) -> Score:
        score, shadows = super().measure(evidence), self.shadows(evidence)
        details = {**score.details, "reference models": len(shadows)}
        if score.interval is None:
            return replace(score, details=details)
        try:
            without = [
                self._value(*(s.double() for s in self.judge(evidence, shadows.without(model))))[0]
                for model in range(len(shadows))
            ]
        except MissingEvidence:
            details["note"] = "Too few reference models to leave one out, so there is no interval."
            return replace(score, interval=None, details=details)
        return replace(score, interval=_widened(score.value, score.interval, without), details=details)


def counts(inside: Tensor, least: int, attack: str) -> None:
    """Refuses examples with fewer than ``least`` models trained with (``inside``), ``(R, N)``, them.

    Raises:
        MissingEvidence: saying how many models are needed.
    """
    found = int(inside.sum(0).min())
    if found < least:
        raise MissingEvidence(
            f"{attack} for every example; some have {found} of {len(inside)} shadow models. Train at least "
            f"{2 * least}, each on half of the data."
        )


def _widened(value: float, interval: tuple[float, float], without: list[float]) -> tuple[float, float]:
    from scipy.special import stdtrit

    n, centre = len(without), sum(without) / len(without)
    error = math.sqrt((n - 1) / n * sum((v - centre) ** 2 for v in without))
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    low, high = interval
    return max(0.0, value - math.hypot(value - low, half)), min(1.0, value + math.hypot(high - value, half))


def masked_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen models of each example: ``(R, N)``, ``(R, N)`` to ``(N,)``; nan for none."""
    return torch.where(chosen, values, 0.0).sum(0) / chosen.sum(0)
