"""A random forget set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from expunge.data.arrays import Data
from expunge.searches.base import Found, Search, check_size, chosen, count, searches
from expunge.tasks.base import Task
from expunge.training.session import Session


@searches.register("random_set")
@dataclass(frozen=True, kw_only=True)
class RandomSet(Search):
    """Examples drawn uniformly without replacement.

    Args:
        size: their number, or their fraction of the data.

    Cost: none.
    """

    size: int | float = 0.1

    def __post_init__(self) -> None:
        check_size(self.size)

    def check(self, train: Data, task: Task) -> None:
        count(self.size, train)

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> Found:
        m = count(self.size, train)
        rows = torch.randperm(len(train), generator=session.generator("random_set"))[:m]
        return chosen(train, rows, "drawn at random")
