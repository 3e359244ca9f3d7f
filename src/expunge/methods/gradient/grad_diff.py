"""Ascent on the forget set balanced by descent on the retain set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from expunge.errors import ConfigError
from expunge.methods.base import GradientMethod, methods
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.step import Step


@methods.register("grad_diff")
@dataclass(frozen=True, kw_only=True)
class GradDiff(GradientMethod):
    """Descends the retain loss and climbs the forget loss in the same step (NegGrad+, GradDiff).

    ``min_θ  b · mean_{i∈D_r} ℓ_i(θ) − (1 − b) · mean_{i∈D_f} ℓ_i(θ)``

    Args:
        retain_weight: ``b`` in (0, 1]; 0.95 in SCRUB's code, with 0.9999 in its large-scale setting.

    Shapes: as the task's; works for every task.
    Cost: ``epochs`` passes over the retain set with a forget batch beside each batch: about two
        forward and backward passes over the retain set an epoch; no copy of the model.
    Guarantee: empirical.
    Differs: nothing in the objective; an epoch is one pass over the retain set, the forget batches
        starting again when used up, as in SCRUB's code.
    References: Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023, arXiv:2302.09880
        (as NegGrad+); Liu et al., Continual Learning and Private Unlearning, 2022 (GradDiff).
    """

    epochs: int = 5
    optim: Optim = SGD(lr=0.01, weight_decay=5e-4)
    retain_weight: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.retain_weight <= 1:
            raise ConfigError(f"must be in (0, 1], got {self.retain_weight}.", "retain_weight")

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain", beside="forget"),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        return {
            "retain": self.retain_weight * step.retain.loss.mean(),
            "forget": -(1 - self.retain_weight) * step.forget.loss.mean(),
        }
