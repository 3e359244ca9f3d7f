"""Boundary shrinking: the forget examples join the nearest class on the other side of the boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.arrays import fixed_order
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.tasks.classification import Classification
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.session import Session
from expunge.training.step import Step


@methods.register("boundary_shrink")
@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(GradientMethod):
    """Trains each forget example to be of the class that lies nearest across the decision boundary.

    One step of the fast gradient sign method on the original looks across the boundary,
    ``x'_i = x_i + ε sign ∇_x ℓ(f_o(x_i), y_i)``, the class found there becomes the target,
    ``y'_i = argmax_{k ≠ y_i} f_o(x'_i)_k``, and ``min_θ mean_{i∈D_f} ℓ(f_θ(x_i), y'_i)`` follows.
    The retain set is not used.

    Args:
        step: ``ε``, in the units of the inputs (images have values in [0, 1]).
        bounds: the range that perturbed inputs are clipped to, ``(0, 1)`` for images; None: no clipping.
        may_stay: whether ``y'`` may be ``y``, as in the authors' code.

    Shapes: inputs ``(N, …)`` of floating-point numbers, logits ``(N, C)``; classification only.
    Cost: two forward and one backward pass over the forget set for the targets, then ``epochs`` passes
        over it; one copy of the model while the targets are found.
    Guarantee: empirical.
    Differs: where the perturbed example is still of its own class, the authors' code trains it to stay
        there, which forgets nothing; here the target is the nearest other class (``may_stay`` gives
        theirs). Targets are found once, without augmentation, since the original does not change; the
        authors find the same ones anew in every epoch. Their bound of 0.1 is the argument ``step``;
        the rounding of perturbed images to multiples of 1/255, and means and deviations of CIFAR-10
        written into the attack, are left out. Their curvature and weighting variants are not part of it.
    References: Chen et al., Boundary Unlearning, CVPR 2023, arXiv:2303.11570. Defaults of the authors'
        code, made for an all-convolutional network on CIFAR-10; other networks need another rate.
    """

    epochs: int = 10
    batch_size: int = 64
    optim: Optim = SGD(lr=1e-5)
    step: float = 0.1
    bounds: tuple[float, float] | None = None
    may_stay: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step > 0:
            raise ConfigError(f"must be above 0, got {self.step}.", "step")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ConfigError(f"the lower end must be below the upper one, got {self.bounds}.", "bounds")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if not isinstance(task, Classification):
            raise Unsupported(
                f"boundary_shrink moves decision boundaries, and task '{type(task).__name__}' has none. "
                "Use a method for every task: grad_diff, npo, scrub."
            )

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> tuple[Task, Tensor]:
        """The task, and the targets ``y'`` at the places of the examples' ids."""
        original = session.engine.copy(model).eval().requires_grad_(False)
        ids, device = split.forget.ids, session.engine.torch_device
        targets = torch.full((int(ids.max()) + 1,), -1, device=device)
        for batch in split.forget.batches(fixed_order(len(ids), self.batch_size), device=device):
            with session.engine.autocast():
                targets[batch["ids"]] = self._across(original, task.prepare(batch, None), task)
        return task, targets

    def objective(self, step: Step) -> dict[str, Tensor]:
        task, targets = step.state
        batch = {**step.forget.batch, "targets": targets[step.forget.batch["ids"]]}
        return {"forget": task.loss(step.forget.outputs, batch).mean()}

    def _across(self, original: nn.Module, batch: dict[str, Tensor], task: Task) -> Tensor:
        """``y'`` of the examples in a batch, ``(N,)``.

        Raises:
            Unsupported: the inputs are no floating-point numbers.
        """
        inputs = batch["inputs"]
        if not inputs.is_floating_point():
            raise Unsupported(
                f"boundary_shrink perturbs its inputs, and they are {inputs.dtype}. Give floating-point ones."
            )
        inputs = inputs.clone().requires_grad_(True)
        loss = task.loss(task.outputs(original, {**batch, "inputs": inputs}), batch).sum()
        (gradient,) = torch.autograd.grad(loss, inputs)
        with torch.no_grad():
            moved = inputs + self.step * gradient.sign()
            if self.bounds is not None:
                moved = moved.clamp(*self.bounds)
            logits = task.outputs(original, {**batch, "inputs": moved})
            if not self.may_stay:
                logits = logits.scatter(1, batch["targets"][:, None], -torch.inf)
        return logits.argmax(1)
