"""All examples of some classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.errors import ConfigError, DataError
from expunge.searches.base import Search, chosen, searches
from expunge.searches.result import SearchResult
from expunge.tasks.base import Task
from expunge.training.session import Session


@searches.register("class_set")
@dataclass(frozen=True, kw_only=True)
class ClassSet(Search):
    """Every example of the named classes.

    Args:
        classes: their labels.

    Cost: none.
    """

    classes: tuple[int, ...]

    reads_model = False

    def __post_init__(self) -> None:
        if not self.classes:
            raise ConfigError("name at least one class, for example [3].", "classes")

    @property
    def gives_classes(self) -> bool:
        return True

    def check(self, train: Data, task: Task) -> None:
        self._rows(train, task)

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        rows = self._rows(train, task)
        names = getattr(train, "class_names", None)
        words = ", ".join(str(names[label]) if names else str(label) for label in self.classes)
        return chosen(train, rows, f"all of class {words}", "class")

    def _rows(self, train: Data, task: Task) -> Tensor:
        groups = task.groups(train)
        known = groups.unique().tolist()
        for label in self.classes:
            if label not in known:
                raise DataError(f"no training example has class {label}. The classes are {known}.")
        rows = torch.isin(groups, torch.tensor(self.classes)).nonzero()[:, 0]
        if len(rows) == len(train):
            raise DataError(f"classes {list(self.classes)} are all of the data; nothing would be kept.")
        return rows
