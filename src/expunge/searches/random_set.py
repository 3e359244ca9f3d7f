"""A forget set drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from expunge.data.arrays import Data
from expunge.searches.base import Sized, chosen, searches
from expunge.searches.result import SearchResult
from expunge.searches.units import Units
from expunge.tasks.base import Task
from expunge.training.session import Session


@searches.register("random_set")
@dataclass(frozen=True, kw_only=True)
class RandomSet(Sized):
    """Units drawn uniformly without replacement.

    Args:
        size: number of units, or their fraction of all.
        unit: what is forgotten whole: ``example``, ``class``, ``subject`` or ``prompt``.

    Cost: none.
    """

    reads_model = False

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        units = Units.read(train, task, self.unit)
        m = units.count(self.size)
        drawn = torch.randperm(len(units), generator=session.generator("random_set"))[:m]
        return chosen(train, units.rows(drawn), "drawn at random", self.unit)
