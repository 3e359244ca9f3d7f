"""A forget set that is already known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

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
    """The examples with these ids, listed, read from a file, or of a set that the data brings.

    Args:
        ids: positions in the training data.
        path: a .txt file with one id a line, a .npy or a .json file; an index file that a search wrote
            is refused with other data than it names.
        name: a forget set that comes with the data: ``forget10`` of ``tofu``.

    Cost: none.
    """

    ids: tuple[int, ...] = ()
    path: Path | None = None
    name: str = ""

    reads_model = False

    def __post_init__(self) -> None:
        if bool(self.ids) + (self.path is not None) + bool(self.name) != 1:
            raise ConfigError(
                "give a list of ids, the path of a file with ids, or the name of a set; one of them.", "ids"
            )

    @property
    def gives_classes(self) -> bool:
        return self._index is not None and self._index.unit == "class"

    def check(self, train: Data, task: Task) -> None:
        self._find(train)

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        found = self._find(train)
        words, unit = f"the data's own set {self.name}" if self.name else "listed by id", "example"
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
        if self.name:
            return Split.from_ids(train, self._named(train)).forget
        wanted = torch.tensor(self.ids) if self.path is None else read_ids(self.path)
        return Split.from_ids(train, wanted).forget

    def _named(self, train: Data) -> Tensor:
        if self.name not in train.sets:
            have = ", ".join(train.sets) or "none"
            raise DataError(
                f"the data brings no set '{self.name}'; it brings: {have}. Name one, or give ids."
            )
        return train.sets[self.name]
