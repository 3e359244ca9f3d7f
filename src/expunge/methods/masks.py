"""What the modifiers share that let the highest-scoring weights move and hold all others, bit for bit."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.modifier import Gradients, Modifier
from expunge.training.session import Session


@dataclass(frozen=True)
class Mask:
    """Which elements may move, and the values of all before the first step."""

    movable: dict[str, Tensor]
    start: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MaskModifier(Modifier):
    """Lets the fraction ``keep`` of all movable weights move that has the largest scores, ranked together.

    Every other weight is exactly what it was, whatever the optimiser does: its gradient is zeroed
    and its value is restored after each step, because weight decay and momentum move weights that
    have no gradient. BatchNorm's running statistics are not weights and are not masked.

    Args:
        keep: fraction of weights that may move.
        batch_size: examples in a backward pass of the scores.
    """

    keep: float = 0.5
    batch_size: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(f"is a fraction in (0, 1], got {self.keep}.", "keep")
        if self.batch_size < 1:
            raise ConfigError(f"must be at least 1, got {self.batch_size}.", "batch_size")

    @abstractmethod
    def scores(
        self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session
    ) -> dict[str, Tensor]:
        """How much each element of the named parameters matters, not negative."""

    def prepare(self, model: nn.Module, split: Split, task: Task, session: Session) -> Mask:
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        scores = self.scores(model, list(weights), split, task, session)
        movable = parameters.largest(scores, self.keep)
        return Mask(movable, {name: weight.detach().clone() for name, weight in weights.items()})

    def gradients(
        self, terms: dict[str, Gradients], state: Mask, optimizer: torch.optim.Optimizer
    ) -> dict[str, Gradients]:
        return {
            term: {name: gradient * state.movable[name] for name, gradient in gradients.items()}
            for term, gradients in terms.items()
        }

    @torch.no_grad()
    def after_step(self, model: nn.Module, state: Mask) -> None:
        for name, weight in model.named_parameters():
            if name in state.movable:
                weight.copy_(torch.where(state.movable[name], weight, state.start[name]))
