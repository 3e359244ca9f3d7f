"""What a search for a forget set is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.evaluation.subject import Reading, Subject
from expunge.registry import Registry
from expunge.searches.result import SearchResult
from expunge.searches.units import Unit, Units, check_size
from expunge.tasks.base import Task
from expunge.training.session import Session

Mode = Literal["worst", "easiest"]
"""``worst``: the hardest to forget in a way that shows; ``easiest``: the opposite."""


class Search(ABC):
    """Chooses the examples to forget. Subclasses are frozen dataclasses."""

    reads_model: ClassVar[bool] = True
    """Whether its sets depend on the model; else they are known before one is trained."""

    needs_recipe: ClassVar[bool] = False
    """Whether the session must bring the recipe that the original was trained with."""

    prepared_by: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that ``prepare`` depends on; none where there is nothing to prepare."""

    def prepare(self, train: Data, task: Task, session: Session) -> dict[str, Tensor]:
        """What is made once of all training data and shared by all searches with equal ``prepared_by``.

        It arrives as ``session.prepared``; where that is None ``search`` calls this itself.
        """
        return {}

    @abstractmethod
    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        """The forget set for a model trained on ``train``; neither is changed.

        Raises:
            DataError: the asked size does not leave something to forget and something to keep.
            Unsupported: the task has no classes, for a search that needs them.
            MissingEvidence: a search that trains models, and no recipe.
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


@dataclass(frozen=True, kw_only=True)
class Sized(Search):
    """A search for a set of an asked size.

    Args:
        size: number of units, or their fraction of all.
        unit: what is forgotten whole: an ``example``, a ``class``, a ``subject`` (the column
            ``subjects`` of the data), a ``prompt`` (the column ``prompts``; of captioned images all that
            share a caption), or a concept: a ``style`` or an ``object`` (the columns of the same names).
    """

    size: int | float = 0.1
    unit: Unit = "example"

    def __post_init__(self) -> None:
        check_size(self.size)

    @property
    def gives_classes(self) -> bool:
        return self.unit == "class"

    def check(self, train: Data, task: Task) -> None:
        Units.read(train, task, self.unit).count(self.size)


@dataclass(frozen=True, kw_only=True)
class Ranking(Sized):
    """The units with the largest mean score (``worst``), or the smallest (``easiest``).

    Args:
        mode: ``worst`` for the hardest to forget, ``easiest`` for the opposite.
    """

    mode: Mode = "worst"

    words: ClassVar[tuple[str, str]] = ("the hardest", "the easiest")
    """What the set is called in either mode."""

    @abstractmethod
    def hardness(self, model: nn.Module, train: Data, task: Task, session: Session) -> Tensor:
        """How hard each example is to forget, ``(N,)`` float64; only the order of unit means counts."""

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        units = Units.read(train, task, self.unit)
        m = units.count(self.size)
        scores = units.mean(self.hardness(model, train, task, session))
        ranked = scores.argsort(descending=self.mode == "worst", stable=True)
        return chosen(train, units.rows(ranked[:m]), self.words[self.mode == "easiest"], self.unit)


def reading(model: nn.Module, data: Data, task: Task, session: Session) -> Reading:
    """What a model says of every example, in evaluation mode and without augmentation."""
    return Subject("search", model, {"train": data}, task, session).read("train")


def losses(model: nn.Module, data: Data, task: Task, session: Session) -> Tensor:
    """``ℓ_i(θ)`` of every example in evaluation mode and without augmentation, ``(N,)``."""
    return reading(model, data, task, session).loss.double()


def chosen(data: Data, rows: Tensor, description: str, unit: Unit = "example") -> SearchResult:
    """The examples at these positions of the data."""
    return SearchResult(torch.sort(data.ids[rows]).values, description, unit)
