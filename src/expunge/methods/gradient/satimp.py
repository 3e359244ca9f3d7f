"""SatImp: ascent weighted by saturation and importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from expunge.errors import ConfigError
from expunge.methods.base import methods
from expunge.methods.labels import LabelObjective, weighted_log_probs
from expunge.training.optim import AdamW, Optim
from expunge.training.step import View


@methods.register("satimp")
@dataclass(frozen=True, kw_only=True)
class SatImp(LabelObjective):
    """Gradient ascent on labels that are neither forgotten yet nor known by heart.

    ``min_θ  mean_{i∈D_f} mean_t w_t log p_θ(y_t) + λ mean_{i∈D_r} ℓ_i(θ)`` with
    ``w_t = p_θ(y_t)^{β₁} (1 − p_θ(y_t))^{β₂}``, no gradient through ``w``. Both 0 is the objective of
    ``grad_ascent``, ``β₂ = 0`` that of ``wga``.

    Args:
        saturation: ``β₁``: labels of low probability are left alone.
        importance: ``β₂``: so are labels of a probability near 1.
        retain_weight: ``λ``.

    Shapes: as the task's; works for every task. Where examples have one likelihood and no tokens, ``p``
        is ``exp`` of it, at most 1.
    Cost: ``epochs`` passes over the forget set, each batch with one of the retain set where ``λ > 0``; no
        copy of the model.
    Guarantee: empirical.
    Differs: open-unlearning builds a second model that it never uses; none is built here. Its weights
        0.1 and 1 of forget and retain term are ``λ = 10`` here: the same direction, and AdamW does not see
        the common factor. ``1 − p`` is computed as ``−expm1(log p)``, exact near ``p = 1``, where the
        weight is nearly 0: an answer that is fully memorised barely moves, with the defaults less than
        under ``wga``. The mean is taken over the tokens of each example, then over examples, there over
        all tokens of the batch. Batch size 16.
    References: Yang et al., Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning, ICML 2025,
        arXiv:2505.11953; locuslab/open-unlearning.
    """

    epochs: int = 5
    batch_size: int = 16
    optim: Optim = AdamW(lr=1e-5)
    saturation: float = 5.0
    importance: float = 1.0
    retain_weight: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("saturation", "importance"):
            if getattr(self, name) < 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)

    def forgetting(self, view: View, state: Any) -> Tensor:
        return weighted_log_probs(view, state, self.weight)

    def weight(self, logs: Tensor) -> Tensor:
        """``p^{β₁} (1 − p)^{β₂}`` of log-probabilities."""
        logs = logs.clamp(max=0)
        return (self.saturation * logs).exp() * (-logs.expm1()) ** self.importance
