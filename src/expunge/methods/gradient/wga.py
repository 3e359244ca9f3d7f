"""Weighted gradient ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from expunge.errors import ConfigError
from expunge.methods.base import methods
from expunge.methods.labels import LabelObjective, weighted_log_probs
from expunge.training.optim import AdamW, Optim
from expunge.training.step import View


@methods.register("wga")
@dataclass(frozen=True, kw_only=True)
class WGA(LabelObjective):
    """Gradient ascent that leaves each label alone as its probability falls.

    ``min_θ  mean_{i∈D_f} mean_t w_t log p_θ(y_t) + λ mean_{i∈D_r} ℓ_i(θ)`` with ``w_t = p_θ(y_t)^β``, no
    gradient through ``w``. ``β = 0`` is the objective of ``grad_ascent``, the mean over labels and
    examples of ``log p``.

    Args:
        beta: ``β``; at 1 the gradient for the logit of ``y_t`` is ``p (1 − p)`` and goes to 0 with ``p``.
        retain_weight: ``λ``.

    Shapes: as the task's; works for every task. Where examples have one likelihood and no tokens, it is
        weighted by its own power, ``exp(−β ℓ)`` for squared errors.
    Cost: ``epochs`` passes over the forget set, each batch with one of the retain set where ``λ > 0``; no
        copy of the model.
    Guarantee: empirical.
    Differs: open-unlearning builds a second model that it never uses; none is built here. The mean is
        taken over the tokens of each example, then over examples, there over all tokens of the batch.
        Learning rate, epochs and weights are open-unlearning's; batch size 32.
    References: Wang et al., Rethinking LLM Unlearning Objectives, ICLR 2025, arXiv:2502.19301;
        locuslab/open-unlearning.
    """

    epochs: int = 5
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-5)
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0:
            raise ConfigError(f"must not be negative, got {self.beta}.", "beta")

    def forgetting(self, view: View, state: Any) -> Tensor:
        return weighted_log_probs(view, state, lambda logs: (self.beta * logs).exp())
