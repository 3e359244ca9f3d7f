"""What happens to the objective and the gradients before the step, and to the weights after it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.registry import Registry
from expunge.tasks.base import Task
from expunge.training.session import Session
from expunge.training.step import Step

Gradients = dict[str, Tensor]
"""A gradient for each trainable parameter, by name."""


class Modifier(ABC):
    """Changes the objective, or gradients between the backward pass and the optimiser's step.

    Modifiers are applied in order, each to what the one before it returned; the terms are added up
    after the last one.
    """

    separate: ClassVar[bool] = False
    """Whether each named term needs a gradient of its own: one backward pass a term."""

    protects_retain: ClassVar[bool] = False
    """Whether the gradient of the retain loss is needed at every step. Where the objective has no
    term ``retain``, the loop adds one named ``probe`` that is not part of the step."""

    def prepare(self, model: nn.Module, split: Split, task: Task, session: Session) -> Any:
        """State for one run, computed before the first step from the model about to be trained."""
        return None

    def terms(
        self, step: Step, objective: Callable[[Step], dict[str, Tensor]], state: Any
    ) -> dict[str, Tensor]:
        """The terms of a step; by default those of the objective and nothing else.

        A modifier may watch or change the model while the objective is evaluated, evaluate it on
        ``step.again(…)``, where what was computed before is computed anew, and add terms. Each modifier
        has what the one before it made as its objective.
        """
        return objective(step)

    def gradients(
        self, terms: dict[str, Gradients], state: Any, optimizer: torch.optim.Optimizer
    ) -> dict[str, Gradients]:
        """The changed gradients of each term."""
        return terms

    def after_step(self, model: nn.Module, state: Any) -> None:
        """Undoes what may not have moved: weight decay and momentum move weights without gradient."""


modifiers: Registry[Modifier] = Registry("modifier", Modifier, ("expunge.methods.modifiers",))
