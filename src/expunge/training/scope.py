"""Which parameters may move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.data.split import Split
from expunge.errors import Unsupported
from expunge.registry import Registry
from expunge.tasks.base import Task
from expunge.training.session import Session


class Scope(ABC):
    """Chooses the parameters that an unlearning run may change."""

    reads_data: ClassVar[bool] = False
    """Whether the choice depends on the forget and the retain set: ``fitted`` is then called first."""

    def fitted(self, model: nn.Module, split: Split, task: Task, session: Session) -> Scope:
        """The scope that one run enters, made from its data; the model is left as it was."""
        return self

    @abstractmethod
    def names(self, model: nn.Module) -> list[str]:
        """The names of the parameters that may move, in the model's order.

        Raises:
            Unsupported: if that is none of them.
        """

    def enter(self, model: nn.Module) -> nn.Module:
        """Prepares a model to be trained: freezes what may not move. May return a wrapper."""
        chosen = set(self.names(model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        return model

    def leave(self, model: nn.Module) -> nn.Module:
        """The model in its original structure again, changes included."""
        return model


scopes: Registry[Scope] = Registry(
    "scope",
    Scope,  # type: ignore[type-abstract]
    ("expunge.training.scope", "expunge.methods.scopes"),
)


@scopes.register("everything")
@dataclass(frozen=True, kw_only=True)
class Everything(Scope):
    """Every parameter that requires a gradient in the model as it was handed in."""

    def names(self, model: nn.Module) -> list[str]:
        found = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not found:
            raise Unsupported("the model has no parameter that requires a gradient; nothing could move.")
        return found
