"""Training from scratch: the original, a retrained model, a shadow model, a shard: the same call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from expunge import seeding
from expunge.data.arrays import Data
from expunge.errors import ConfigError
from expunge.tasks.base import Task
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.moving_average import MovingAverage
from expunge.training.optim import SGD, Optim
from expunge.training.scope import Everything, Scope
from expunge.training.session import Session


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
    """

    epochs: int = 30
    batch_size: int = 128
    optim: Optim = SGD(lr=0.1, weight_decay=5e-4, schedule="cosine")
    scope: Scope = Everything()
    ema: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"is a decay between 0 and 1, got {self.ema}.", "ema")
        if self.scope.reads_data:
            raise ConfigError("is chosen by a forget set, and there is none in training.", "scope")


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
            objective=lambda step: {"loss": step.retain.loss.mean()},
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
