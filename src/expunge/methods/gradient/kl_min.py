"""Ascent on the forget set beside the original's predictions on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from expunge.errors import ConfigError
from expunge.methods.base import GradientMethod, methods
from expunge.training.optim import AdamW, Optim
from expunge.training.step import Step


@methods.register("kl_min")
@dataclass(frozen=True, kw_only=True)
class KLMin(GradientMethod):
    """Climbs the forget loss and stays close to what the original predicts on the retain set.

    ``min_θ  −mean_{i∈D_f} ℓ_i(θ) + λ mean_{i∈D_r} KL(p_θo(·|x_i) ‖ p_θ(·|x_i))``; for a language model
    ``ℓ_i`` is the mean over the answer tokens and the divergence the mean over the positions before them,
    with the original first. At the original the divergence and its gradient are 0, so that the first
    step is gradient ascent. The first term has no lower bound: few epochs, or a small rate.

    Args:
        retain_weight: ``λ``; above 0, as 0 is grad_ascent.

    Shapes: as the task's; works for every task.
    Cost: ``epochs`` passes over the forget set with a retain batch beside each batch, forward and backward,
        and a forward pass of the original over each retain batch. Both models are in memory, and the
        logits of the retain batch at its labels.
    Guarantee: empirical.
    Differs: TOFU's code takes the divergence at every position, prompt and padding included, and divides by
        the size of the padded batch, so that its weight depends on what shares a batch; here each example's
        answer tokens count, and each example alike (their forget loss weighs an example by its length, too).
        The codes of WAGLE and SOUL minimise ``−Σ p_θ log p_θo`` under the name KL, whose minimum is the
        likeliest token alone and not the original; that of MUSE gives logits to a function of
        log-probabilities. Both models are in evaluation mode. Rate, decay, schedule and epochs are those of
        NPO's code for its baselines, the batch is 32 in all.
    References: Maini et al., TOFU, COLM 2024, arXiv:2401.06121 (KL minimisation); defaults as in the code
        of Zhang et al., Negative Preference Optimization, COLM 2024, arXiv:2404.05868.
    """

    epochs: int = 10
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.01, schedule="linear", warmup=0.1)
    mode: Literal["train", "eval"] = "eval"
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.retain_weight > 0:
            raise ConfigError(
                f"must be above 0, got {self.retain_weight}; 0 is grad_ascent.", "retain_weight"
            )

    def objective(self, step: Step) -> dict[str, Tensor]:
        return {
            "forget": -step.forget.loss.mean(),
            "retain": self.retain_weight * step.retain.drift.mean(),
        }
