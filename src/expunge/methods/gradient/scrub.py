"""SCRUB: a student that disobeys the teacher on the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from expunge.errors import ConfigError
from expunge.methods.base import GradientMethod, methods
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.step import Step


@methods.register("scrub")
@dataclass(frozen=True, kw_only=True)
class Scrub(GradientMethod):
    """Pushes the model's outputs away from the original's on the forget set and keeps them on the rest.

    In each of the first ``max_epochs`` epochs a pass of
    ``max_θ mean_{i∈D_f} T² KL(p_o^(1/T) ‖ p_θ^(1/T))``; in every epoch then a pass of
    ``min_θ mean_{i∈D_r} [ γ ℓ_i(θ) + α T² KL(p_o^(1/T) ‖ p_θ^(1/T)) ]``.

    Args:
        max_epochs: epochs that begin with a pass away from the original (``msteps``).
        alpha: weight of staying near the original on the retain set.
        gamma: weight of the task's loss on the retain set.
        temperature: ``T``.
        forget_batch_size: examples in a step of the forget passes.

    Shapes: as the task's; every task has the tempered divergence, a Gaussian of variance ``T`` for
        squared errors.
    Cost: ``epochs`` passes over the retain and ``max_epochs`` over the forget set, each with a second
        forward pass through the original; one copy of the model.
    Guarantee: empirical.
    Differs: the divergence is the mean over examples of a sum over classes, as in the authors'
        large-scale code. SCRUB+R (choosing an epoch by validation error) is not part of it. The copy
        in the worst-case-sets code does forget-only epochs first; this alternates as the original.
        Without BatchNorm and dropout the student equals the teacher at first, so the first forget
        step has no gradient, here as there.
    References: Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023, arXiv:2302.09880;
        defaults of its large-scale setting.
    """

    epochs: int = 3
    optim: Optim = SGD(lr=5e-4, weight_decay=5e-4)
    max_epochs: int = 2
    alpha: float = 0.001
    gamma: float = 0.99
    temperature: float = 4.0
    forget_batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ConfigError(f"must be above 0, got {self.temperature}.", "temperature")
        if self.forget_batch_size < 1:
            raise ConfigError(f"must be at least 1, got {self.forget_batch_size}.", "forget_batch_size")

    def passes(self, epoch: int) -> Sequence[Pass]:
        if epoch < self.max_epochs:
            return (Pass("forget", batch_size=self.forget_batch_size), Pass("retain"))
        return (Pass("retain"),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        square = self.temperature**2
        if step.over == "forget":
            return {"forget": -square * step.forget.divergence(self.temperature).mean()}
        drift = step.retain.divergence(self.temperature).mean()
        return {"retain": self.gamma * step.retain.loss.mean() + self.alpha * square * drift}
