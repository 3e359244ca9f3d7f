"""Ascent on negatively smoothed labels: what the UGradSL methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.training.session import Session
from expunge.training.step import Step


@dataclass(frozen=True, kw_only=True)
class SmoothedLabels(GradientMethod):
    """``min_θ  p · mean_{D_r} ℓ_i − (1 − p) · mean_{D_f} ℓ_i^a`` with ``ℓ^a`` on smoothed labels.

    With the label ``(1 − a) onehot(y) + a / C`` the cross-entropy is ``ℓ^a = (1 − a) ℓ + a u``,
    ``u = −(1/C) Σ_c log p_c``, which is the task's divergence from the uniform distribution plus
    ``log C``; the constant ``a log C`` is left out.
    """

    retain_weight: float = 0.95
    smoothing: float | None = None
    near: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.retain_weight < 1:
            raise ConfigError(f"must be in (0, 1), got {self.retain_weight}.", "retain_weight")
        if self.smoothing is not None and not -1 <= self.smoothing <= 0:
            raise ConfigError(
                f"is negative smoothing, from -1 to 0, got {self.smoothing}; for a stronger ascent lower "
                "retain_weight.",
                "smoothing",
            )
        if not 0 < self.near <= 1:
            raise ConfigError(f"is a distance in (0, 1], got {self.near}.", "near")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if type(task).jensen_shannon is Task.jensen_shannon:  # the outputs are no finite distribution
            raise Unsupported(
                f"{methods.name_of(self)} smooths labels, and task '{type(task).__name__}' has no classes to "
                "smooth over. Use a method for every task: grad_diff, npo."
            )

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Any:
        return task

    def objective(self, step: Step) -> dict[str, Tensor]:
        task: Task = step.state
        outputs, p = step.forget.outputs, self.retain_weight
        rate: float | Tensor
        if self.smoothing is None:
            rate = -crowding(outputs, step.retain.outputs, self.near)
        else:
            rate = self.smoothing
        uniform = task.divergence(torch.zeros_like(outputs), outputs, step.forget.batch)
        smoothed = (1 - rate) * step.forget.loss + rate * uniform
        return {"retain": p * step.retain.loss.mean(), "forget": -(1 - p) * smoothed.mean()}


@torch.no_grad()
def crowding(forget: Tensor, retain: Tensor, near: float) -> Tensor:
    """The fraction of the retain examples nearer than ``near`` to each forget example, ``(n_f,)``.

    The distance is that of the angle between logits ``(n, C)``, ``d = (1 − cos) / 2`` in [0, 1], each
    example's logits centred, as the softmax does not see what is added to all of them.

    Raises:
        Unsupported: outputs of another shape.
    """
    if forget.ndim != 2:
        raise Unsupported(
            f"the adaptive smoothing compares one vector of logits an example, and these outputs have shape "
            f"{tuple(forget.shape)}. Set smoothing, for example -0.1."
        )
    mine, others = (F.normalize(z.float() - z.float().mean(1, keepdim=True)) for z in (forget, retain))
    return ((1 - mine @ others.T) / 2 < near).float().mean(1)
