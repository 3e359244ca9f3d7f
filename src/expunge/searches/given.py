"""A forget set that is already known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from expunge.data.arrays import Data
from expunge.data.split import Split, read_ids
from expunge.errors import ConfigError, DataError
from expunge.searches.base import Search, searches
from expunge.searches.result import SearchResult
from expunge.tasks.base import Task
from expunge.training.session import Session


@searches.register("given")
@dataclass(frozen=True, kw_only=True)
class Given(Search):
    """The examples with these ids, listed or read from a file.

    Args:
        ids: positions in the training data.
        path: a .txt file with one id a line, a .npy or a .json file; an index file that a search wrote
            is refused with other data than it names.

    Cost: none.
    """

    ids: tuple[int, ...] = ()
    path: Path | None = None

    def __post_init__(self) -> None:
        if bool(self.ids) == (self.path is not None):
            raise ConfigError("give either a list of ids or the path of a file with ids.", "ids")

    @property
    def gives_classes(self) -> bool:
        return self._index is not None and self._index.unit == "class"

    def check(self, train: Data, task: Task) -> None:
        self._find(train)

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        found = self._find(train)
        words, unit = "listed by id", "example"
        if (index := self._index) is not None:
            words, unit = index.description, index.unit
        return SearchResult(torch.sort(found.ids).values, words, unit)

    @property
    def _index(self) -> SearchResult | None:
        """The index file, where the path leads to one."""
        if self.path is None or self.path.suffix != ".json":
            return None
        try:
            return SearchResult.load(self.path)
        except DataError:
            return None  # a list of ids, or what read_ids will complain about

    def _find(self, train: Data) -> Data:
        if (index := self._index) is not None:
            index.check(train)
        wanted = torch.tensor(self.ids) if self.path is None else read_ids(self.path)
        return Split.from_ids(train, wanted).forget
