"""The robust membership inference attack, strong with few reference models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.errors import ConfigError
from expunge.evaluation.attacks.shadowed import Shadowed, counts, masked_mean
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.evaluation.shadows import Shadows


@metrics.register("rmia")
@dataclass(frozen=True, kw_only=True)
class RMIA(Shadowed):
    """Whether an example gains more over what reference models give it than the population does.

    ``ratio(x) = p_θ(x) / p̄(x)`` with ``p`` the probability of the true label; the score is the share of
    population examples ``z`` with ``ratio(x) / ratio(z) > γ``. Online ``p̄ = ½ (p̄_in + p̄_out)``, the means
    over reference models that were and were not trained on ``x``; offline ``a p̄_out + 1 − a`` stands for
    ``p̄_in``, so that ``p̄ = ½ ((1 + a) p̄_out + 1 − a)``. The population are the non-members, an
    example never being compared with itself.

    Args:
        mode: ``offline`` needs no model that was trained on the example.
        a: 1 if training on an example is taken to leave its probability as it was, 0 if to make it 1.
        gamma: how many times larger a ratio has to be.
        references: use the first so many shadow models alone; all of them by default.

    Ideal: the retrained model's value; 0.5 (AUC, balanced accuracy) and the false positive rate itself
        (TPR) up to sampling.
    Cost: four reference models are enough for most of what can be found; then one reading of the
        subject and a sort.
    Differs: the authors' code takes the reference models without an example by sorting all signals in
        descending order, so that zeros enter where there are too few of them, and of more than enough
        the highest; here exactly those models are averaged, and too few are an error. There ``k``
        reference models are ``k`` without each example, ``2 k`` in all; here ``references`` counts all.
    References: Zarifzadeh, Liu and Shokri, Low-Cost High-Power Membership Inference Attacks, ICML 2024,
        arXiv:2312.03262; code ml_privacy_meter.
    """

    mode: Literal["offline", "online"] = "offline"
    a: float = 0.3
    gamma: float = 1.0
    references: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.a <= 1:
            raise ConfigError(f"is a number from 0 to 1, got {self.a}.", "a")
        if not self.gamma > 0:
            raise ConfigError(f"must be above 0, got {self.gamma}.", "gamma")
        if self.references is not None and self.references < 1:
            raise ConfigError(f"must be at least 1, got {self.references}.", "references")

    def named(self) -> str:
        parts = ["rmia", *(["online"] if self.mode == "online" else [])]
        parts += [f"a{self.a:g}"] if self.a != 0.3 and self.mode == "offline" else []
        parts += [f"gamma{self.gamma:g}"] if self.gamma != 1 else []
        parts += [str(self.references)] if self.references else []
        return "-".join(parts)

    def shadows(self, evidence: Evidence) -> Shadows:
        found = super().shadows(evidence)
        return found if self.references is None else found.first(self.references)

    def judge(self, evidence: Evidence, shadows: Shadows) -> tuple[Tensor, Tensor]:
        members, others = (
            self.log_ratio(evidence.subject.read(part).loss, shadows.losses(part), shadows.inside(part))
            for part in (self.part, self.against)
        )
        return shares(members, others, self.gamma), shares_among(others, self.gamma)

    def log_ratio(self, own: Tensor, losses: Tensor, inside: Tensor) -> Tensor:
        """``log p_θ(x) − log p̄(x)``, ``(N,)``, from the subject's losses and the models' ``(R, N)``.

        Raises:
            MissingEvidence: an example has no reference model without it (online: or with it).
        """
        probabilities = torch.exp(-losses.double())
        counts(~inside, 1, "RMIA needs a reference model trained without it")
        outside = masked_mean(probabilities, ~inside)
        if self.mode == "online":
            counts(inside, 1, "RMIA needs a reference model trained with it")
            usual = (masked_mean(probabilities, inside) + outside) / 2
        else:
            usual = ((1 + self.a) * outside + 1 - self.a) / 2
        return -own.double() - usual.clamp(min=torch.finfo(torch.float64).tiny).log()


def shares(ratios: Tensor, population: Tensor, gamma: float) -> Tensor:
    """The share of the population with ``ratio(x) / ratio(z) > γ``, from logarithms. ``(N,)``, ``(M,)``.

    Cost: two sorts; no table of pairs.
    """
    bound = ratios - torch.tensor(gamma, dtype=torch.float64).log()
    return torch.searchsorted(population.sort().values, bound).double() / len(population)


def shares_among(population: Tensor, gamma: float) -> Tensor:
    """The same of the population's own examples, each left out of its own comparison. ``(M,)``."""
    count = shares(population, population, gamma) * len(population)
    itself = 1.0 if gamma < 1 else 0.0
    return (count - itself) / max(len(population) - 1, 1)
