"""Training from scratch: the original, a retrained model, a shadow model, a shard: the same call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge import seeding
from expunge.config import later
from expunge.data.arrays import Data
from expunge.errors import ConfigError
from expunge.tasks.base import Task
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.moving_average import MovingAverage
from expunge.training.optim import SGD, ForwardOnly, Optim
from expunge.training.scope import Everything, Scope
from expunge.training.session import Session
from expunge.training.step import Step


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained from scratch: ``train:`` of an experiment.

    Args:
        epochs: passes over the training data.
        batch_size: examples in a step; the last one of an epoch may have fewer.
        optim: how a step is taken.
        scope: which parameters are trained; the others keep their random or loaded values.
        ema: the result is the moving average of the weights with this decay a step, as is usual for
            diffusion models; None for the weights of the last step.
        gradient_penalty: ``α`` in ``ℓ + α Σ_t ‖∇_t ℓ‖₂`` over the trained tensors ``t``, with ``ℓ`` the mean
            loss of a batch, or of a part of it under ``accumulate``: training for ``iau`` (0.005 in its
            authors' code). It costs a backward pass through the first one. 0 for none.
    """

    epochs: int = 30
    batch_size: int = 128
    optim: Optim = SGD(lr=0.1, weight_decay=5e-4, schedule="cosine")
    scope: Scope = Everything()
    ema: float | None = None
    gradient_penalty: float = later(0.0)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"is a decay between 0 and 1, got {self.ema}.", "ema")
        if self.scope.reads_data:
            raise ConfigError("is chosen by a forget set, and there is none in training.", "scope")
        if not 0 <= self.gradient_penalty < math.inf:
            raise ConfigError(f"must not be negative, got {self.gradient_penalty}.", "gradient_penalty")
        if self.gradient_penalty and isinstance(self.optim, ForwardOnly):
            raise ConfigError("needs gradients, which this optimiser does without.", "gradient_penalty")

    def objective(self, step: Step) -> dict[str, Tensor]:
        """What a step minimises: the mean loss of its examples, and its gradient's norms where asked for."""
        if not self.gradient_penalty:
            return {"loss": step.retain.loss.mean()}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            loss = step.retain.loss.mean()
        trained = [p for p in step.model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
        norms = [torch.linalg.vector_norm(gradient) for gradient in found if gradient is not None]
        return {"loss": loss, "gradient": self.gradient_penalty * torch.stack(norms).sum()}


@dataclass(frozen=True)
class Recipe:
    """A model to build, the task it is for, and how it is trained.

    Args:
        model: makes a freshly initialised model at each call, from torch's global generator.
        task: what it is for.
        training: optimiser, epochs, batch size.
    """

    model: Callable[[], nn.Module]
    task: Task
    training: Training = Training()

    def initial(self, session: Session) -> nn.Module:
        """The freshly initialised model that ``train`` would start from with this session."""
        with seeding.seeded(seeding.derive(session.seed, "initialise")):
            return self.model()

    def train(self, data: Data, session: Session, what: str = "train") -> nn.Module:
        """A model trained on the data from new random weights; every parameter is initialised anew.

        Cost: ``epochs`` passes over the data.
        """
        average = None if self.training.ema is None else MovingAverage(self.training.ema)
        plan = Plan(
            what=what,
            objective=self.training.objective,
            parts={"retain": data},
            passes=lambda epoch: (Pass("retain"),),
            epochs=self.training.epochs,
            batch_size=self.training.batch_size,
            optim=self.training.optim,
            scope=self.training.scope,
            after=average,
        )
        model = optimise(self.initial(session), plan, self.task, replace(session, recipe=None))
        return model if average is None else average.written(model)
