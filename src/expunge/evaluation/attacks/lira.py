"""The likelihood-ratio attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.errors import MissingEvidence
from expunge.evaluation.attacks.shadowed import Shadowed, counts, masked_mean
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.evaluation.shadows import Shadows

LEAST_SPREAD = 1e-6
"""The smallest standard deviation of a fitted Gaussian."""


@metrics.register("lira")
@dataclass(frozen=True, kw_only=True)
class LiRA(Shadowed):
    """Whether a confidence is that of models trained on the example, or of models trained without it.

    With ``φ = log p/(1 − p)`` the subject's logit-scaled confidence in the true label, and Gaussians
    fitted to the same quantity of the shadow models trained with the example (in) and without it (out),
    the score is ``log N(φ; μ_in, σ_in) − log N(φ; μ_out, σ_out)``; offline ``(φ − μ_out)/σ_out``, which
    orders the examples as ``P(N(μ_out, σ_out) ≤ φ)`` does, without the rounding of probabilities near 1.
    The value is how well it tells members from non-members.

    Args:
        mode: ``online`` uses models with and without the example, ``offline`` those without it alone.
        variance: ``global``: one σ_in and one σ_out for all examples, the root of the mean variance
            within an example; for up to 64 models or so. ``per_example``: one for each.

    Ideal: the retrained model's value; 0.5 (AUC, balanced accuracy) and the false positive rate itself
        (TPR) up to sampling. A low AUC is no proof of deletion: with few or badly matched shadow models
        the attack is weak.
    Cost: the shadow trainings, shared by all attacks and methods; then one reading of the subject.
    Differs: both variances are taken over examples of both sides at once, so that members and
        non-members are scored by the same rule. The authors' code centres at the median; its fixed
        variance is the standard deviation of *all* margins, with the spread between examples in it,
        and online it takes that of the in-models for both; its offline score is the density under the
        out-Gaussian, which the paper's one-sided probability is not. RULI's smoothed densities
        (bandwidth 1 on the logit scale) are not used: they blur what few models say.
    References: Carlini et al., Membership Inference Attacks From First Principles, S&P 2022,
        arXiv:2112.03570.
    """

    mode: Literal["online", "offline"] = "online"
    variance: Literal["global", "per_example"] = "global"

    def named(self) -> str:
        parts = [metrics.name_of(self)]
        parts += ["offline"] if self.mode == "offline" else []
        parts += ["per-example"] if self.variance == "per_example" else []
        return "-".join(parts)

    def judge(self, evidence: Evidence, shadows: Shadows) -> tuple[Tensor, Tensor]:
        own = [evidence.subject.read(part).margin for part in (self.part, self.against)]
        margins = torch.cat([shadows.margins(part) for part in (self.part, self.against)], 1)
        inside = torch.cat([shadows.inside(part) for part in (self.part, self.against)], 1)
        found = self.ratios(torch.cat(own), margins, inside)
        return found[: len(own[0])], found[len(own[0]) :]

    def ratios(self, own: Tensor, margins: Tensor, inside: Tensor) -> Tensor:
        """The scores ``(N,)`` of the subject's margins ``(N,)``, given the models' ``(R, N)``.

        Raises:
            MissingEvidence: an example has too few models with or without it.
        """
        least = 2 if self.variance == "per_example" else 1
        own, margins = own.double(), margins.double()
        counts(~inside, least, f"LiRA needs {least} or more models trained without it")
        outside = self._standardised(own, margins, ~inside)
        if self.mode == "offline":
            return outside[0]
        counts(inside, least, f"LiRA needs {least} or more models trained with it")
        within = self._standardised(own, margins, inside)
        return (outside[0].square() - within[0].square()) / 2 + (outside[1] / within[1]).log()

    def _standardised(self, own: Tensor, margins: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """``(φ − μ)/σ`` and ``σ`` of each example, both ``(N,)``."""
        mean, number = masked_mean(margins, chosen), chosen.sum(0)
        squares = torch.where(chosen, (margins - mean).square(), 0.0).sum(0)
        if self.variance == "global":
            degrees = (number - 1).sum()
            if degrees == 0:
                raise MissingEvidence(
                    "LiRA's variance needs two models with, and two without, some example; there is one for "
                    f"each of {len(margins)}. Train at least 4 shadow models."
                )
            variance = (squares.sum() / degrees).expand_as(mean)
        else:
            variance = squares / (number - 1)
        spread = variance.sqrt().clamp(min=LEAST_SPREAD)
        return (own - mean) / spread, spread
