"""What a search for a forget set is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.errors import ConfigError, DataError
from expunge.evaluation.evidence import Subject
from expunge.registry import Registry
from expunge.tasks.base import Task
from expunge.training.session import Session


@dataclass(frozen=True)
class Found:
    """A forget set.

    Args:
        ids: root ids of the examples, ascending, ``(m,)``.
        description: how it was chosen, in words.
    """

    ids: Tensor
    description: str

    def overlap(self, other: Found) -> float:
        """The fraction of this set that the other one holds too."""
        return float(torch.isin(self.ids, other.ids).double().mean())


class Search(ABC):
    """Chooses the examples to forget. Subclasses are frozen dataclasses."""

    @abstractmethod
    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> Found:
        """The forget set for a model trained on ``train``; neither is changed.

        Raises:
            DataError: the asked size does not leave something to forget and something to keep.
            Unsupported: the task has no classes, for a search that needs them.
        """

    def check(self, train: Data, task: Task) -> None:
        """Refuses what can be known to fail without a model.

        Raises:
            DataError, Unsupported: as ``search``.
        """

    @property
    def gives_classes(self) -> bool:
        """Whether its sets are whole classes, which some methods need."""
        return False

    def baseline(self) -> Search | None:
        """The cheaper search that this one should beat; their overlap is reported."""
        return None


searches: Registry[Search] = Registry("search", Search, ("expunge.searches",))  # type: ignore[type-abstract]


def check_size(size: int | float) -> None:
    """Refuses a size that can fit no data set.

    Raises:
        ConfigError: not a number of examples ≥ 1 nor a fraction in (0, 1).
    """
    if (isinstance(size, float) and not 0 < size < 1) or (isinstance(size, int) and size < 1):
        raise ConfigError(
            f"is a number of examples (an integer of at least 1) or a fraction between 0 and 1, got {size}.",
            "size",
        )


def count(size: int | float, data: Data) -> int:
    """The number of examples that ``size`` asks for of this data.

    Raises:
        DataError: more than there are, or all of them.
    """
    wanted = size if isinstance(size, int) else max(1, round(size * len(data)))
    if wanted >= len(data):
        raise DataError(
            f"a forget set of {wanted} leaves nothing to keep: the data has {len(data)} examples. "
            f"Ask for at most {len(data) - 1}."
        )
    return wanted


def losses(model: nn.Module, data: Data, task: Task, session: Session) -> Tensor:
    """``ℓ_i(θ)`` of every example in evaluation mode and without augmentation, ``(N,)``."""
    return Subject("search", model, {"train": data}, task, session).read("train").loss.double()


def chosen(data: Data, rows: Tensor, description: str) -> Found:
    """The examples at these positions of the data."""
    return Found(torch.sort(data.ids[rows]).values, description)
