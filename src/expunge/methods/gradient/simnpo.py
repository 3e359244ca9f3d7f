"""Negative preference optimisation without a reference, by the mean likelihood of a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from expunge.errors import ConfigError
from expunge.methods.base import GradientMethod, methods
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.step import Step


@methods.register("simnpo")
@dataclass(frozen=True, kw_only=True)
class SimNPO(GradientMethod):
    """Raises the forget loss, less and less as it grows: by its value alone, not by the original's.

    ``min_θ  −w (2/β) mean_{i∈D_f} log σ( β ℓ_i(θ) − γ ) + λ mean_{i∈D_r} ℓ_i(θ)`` with ``ℓ = −ℓℓ / T`` the
    mean over the ``T`` answer tokens. The gradient of the first term is ``−w mean 2 σ(γ − β ℓ_i) ∇ℓ_i``:
    with ``γ = 0`` and ``β → 0`` it is gradient ascent on the token means.

    Args:
        beta: ``β``; a change also changes the balance with the retain term, through ``2/β``.
        margin: ``γ``, taken off after the multiplication by ``β``.
        forget_weight: ``w``.
        retain_weight: ``λ``; 0 is SimNPO alone.

    Shapes: as the task's; works for every task.
    Cost: ``epochs`` passes over the forget set with a retain batch beside each batch where ``λ > 0``,
        forward and backward; no copy of the model and nothing of the original.
    Guarantee: empirical.
    Differs: the margin is the paper's, outside ``β``; the authors' code and open-unlearning (which calls it
        ``delta``) take it off before multiplying: theirs is ``γ / β``. Their ``T`` counts labels before the
        shift by one, one too many where the first token of a text has a label. Each retained example
        weighs the same, theirs by its tokens. Defaults are those of the authors' configuration for TOFU
        forget05; for forget10 they take ``β = 4.5`` and ``w = 0.125``, which open-unlearning applies to
        every split.
    References: Fan et al., Simplicity Prevails: Rethinking Negative Preference Optimization for LLM
        Unlearning, NeurIPS 2025, arXiv:2410.07163.
    """

    epochs: int = 10
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.01, schedule="linear", warmup=0.1)
    beta: float = 2.5
    margin: float = 0.0
    forget_weight: float = 0.1375
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "forget_weight"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        if self.retain_weight < 0:
            raise ConfigError(f"must not be negative, got {self.retain_weight}.", "retain_weight")

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain" if self.retain_weight > 0 else None),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        kept = F.logsigmoid(self.beta * step.forget.loss - self.margin).mean()
        terms = {"forget": -2 * self.forget_weight / self.beta * kept}
        if self.retain_weight > 0:
            terms["retain"] = self.retain_weight * step.retain.loss.mean()
        return terms
