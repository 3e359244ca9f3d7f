"""A forget set that is already known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from expunge.data.arrays import Data
from expunge.data.split import Split, read_ids
from expunge.errors import ConfigError
from expunge.searches.base import Found, Search, searches
from expunge.tasks.base import Task
from expunge.training.session import Session


@searches.register("given")
@dataclass(frozen=True, kw_only=True)
class Given(Search):
    """The examples with these ids, listed or read from a file.

    Args:
        ids: positions in the training data.
        path: a .txt file with one id a line, a .npy or a .json file.

    Cost: none.
    """

    ids: tuple[int, ...] = ()
    path: Path | None = None

    def __post_init__(self) -> None:
        if bool(self.ids) == (self.path is not None):
            raise ConfigError("give either a list of ids or the path of a file with ids.", "ids")

    def check(self, train: Data, task: Task) -> None:
        self._find(train)

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> Found:
        found = self._find(train)
        return Found(torch.sort(found.ids).values, "listed by id")

    def _find(self, train: Data) -> Data:
        wanted = torch.tensor(self.ids) if self.path is None else read_ids(self.path)
        return Split.from_ids(train, wanted).forget
