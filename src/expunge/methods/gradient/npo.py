"""Negative preference optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from expunge.errors import ConfigError
from expunge.methods.base import GradientMethod, methods
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.step import Step


@methods.register("npo")
@dataclass(frozen=True, kw_only=True)
class NPO(GradientMethod):
    """Lowers the likelihood of the forget set relative to the original's, less and less as it falls.

    ``min_θ  −(2/β) mean_{i∈D_f} log σ( −β (ℓℓ_i(θ) − ℓℓ_i(θ_o)) ) + λ mean_{i∈D_r} k_i(θ)`` with
    ``ℓℓ`` the log-likelihood of an example, for a language model the sum over its answer tokens, and
    ``k`` the loss or ``KL(p_θo ‖ p_θ)``. The gradient of the first term is ``mean w_i ∇ℓℓ_i`` with
    ``w = 2 p_θ^β / (p_θ^β + p_o^β) ∈ (0, 2)``, 1 at the start; ``β → 0`` is gradient ascent.

    Args:
        beta: ``β``, how soon a forgotten example is left alone.
        retain: the retain term: the task's ``loss`` (NPO+RT), or the ``divergence`` from the original's
            predictions (NPO+KL).
        retain_weight: ``λ``; 0 is NPO alone.

    Shapes: as the task's; works for every task.
    Cost: ``epochs`` passes over the forget set, with a retain batch beside each batch where ``λ > 0``.
        The original's log-likelihoods are kept after the first epoch, one number an example;
        ``divergence`` needs the original itself, a forward pass a step.
    Guarantee: empirical.
    Differs: both passes are in evaluation mode, so that the first step has ``w = 1`` exactly also with
        BatchNorm and dropout; ``mode="train"`` changes the one being trained. The reference is the
        model handed in, not a base model. Log-probabilities of tokens, never logits. Each retained example
        weighs the same, where the authors' code weighs it by its tokens; the divergence is taken at answer
        tokens alone, theirs over prompt and padding too. The defaults are those for any task; for language
        models the authors take AdamW (rate 1e-5, decay 0.01, linear, one epoch of warm-up) and batches of 32.
    References: Zhang et al., Negative Preference Optimization, COLM 2024, arXiv:2404.05868.
    """

    epochs: int = 10
    optim: Optim = SGD(lr=0.01)
    mode: Literal["train", "eval"] = "eval"
    beta: float = 0.1
    retain: Literal["loss", "divergence"] = "loss"
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ConfigError(f"must be above 0, got {self.beta}; β → 0 is grad_ascent.", "beta")
        if self.retain_weight < 0:
            raise ConfigError(f"must not be negative, got {self.retain_weight}.", "retain_weight")

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain" if self.retain_weight > 0 else None),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        gain = step.forget.original_log_likelihood - step.forget.log_likelihood
        terms = {"forget": -2 / self.beta * F.logsigmoid(self.beta * gain).mean()}
        if self.retain_weight > 0:
            kept = step.retain.loss if self.retain == "loss" else step.retain.drift
            terms["retain"] = self.retain_weight * kept.mean()
        return terms
