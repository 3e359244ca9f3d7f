"""Influence approximation unlearning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.base import Edit, methods
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.session import Session

EPSILON = 1e-8
"""Adam's."""


@methods.register("iau")
@dataclass(frozen=True, kw_only=True)
class IAU(Edit):
    """One step that learns the forget set negated and the retain set as it is.

    ``g = mean_{i∈D_r} ∇ℓ_i − mean_{i∈D_f} ∇ℓ_i``; ``θ ← θ − η g / (|g| + 10⁻⁸)``, the first step of a
    fresh Adam and so ``θ − η sign(g)``, or with ``rule=gradient`` ``θ ← θ − η g``.

    Args:
        lr: ``η``. Under ``adam`` it is what every weight moves by and the whole strength of the method;
            the authors' code has 1e-3.
        rule: ``adam`` as in the authors' code; ``gradient`` is the plain incremental step of the paper's
            idea (influence with the identity for the inverse Hessian). Whether the paper weights the two
            gradients as means is not verified.
        batch_size: examples in a backward pass; it does not change the result.

    Shapes: every parameter; buffers stay. Works for every task.
    Cost: one forward and backward pass over all data; two copies of the parameters. No training.
    Guarantee: empirical.
    Differs: nothing in the step under ``adam``, but the model is in evaluation mode and the data goes
        through in batches whose gradients are averaged, where the authors put all of it through at
        once. As theirs: two means of equal weight, so the size of the forget set does not matter;
        under ``adam`` nor does that of the gradient. The penalty on the gradient norm while training
        (their ``model_fix_flag``) belongs to the recipe of the original: ``gradient_penalty=0.005`` of its
        ``Training``, or ``train.gradient_penalty=0.005``.
    References: Liu et al., Efficient Machine Unlearning via Influence Approximation, 2025,
        arXiv:2507.23257.
    """

    lr: float = 1e-3
    rule: Literal["adam", "gradient"] = "adam"
    batch_size: int = 128

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"must be above 0, got {self.lr}.", "lr")
        if self.batch_size < 1:
            raise ConfigError(f"must be at least 1, got {self.batch_size}.", "batch_size")

    def edit(self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session) -> None:
        retain, forget = (
            parameters.mean_gradient(model, data, task, session, names=names, batch_size=self.batch_size)
            for data in (split.retain, split.forget)
        )
        weights = dict(model.named_parameters())
        for name in names:
            step = retain[name] - forget[name]
            if self.rule == "adam":
                step = step / (step.abs() + EPSILON)
            with torch.no_grad():
                weights[name].sub_(step, alpha=self.lr)
