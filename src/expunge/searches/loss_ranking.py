"""The examples that the original fits best, or worst."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from expunge.data.arrays import Data
from expunge.searches.base import Found, Search, check_size, chosen, count, losses, searches
from expunge.tasks.base import Task
from expunge.training.session import Session


@searches.register("loss_ranking")
@dataclass(frozen=True, kw_only=True)
class LossRanking(Search):
    """The ``m`` examples with the smallest loss under the original (``worst``), or the largest (``easiest``).

    ``argmin_{|S|=m} Σ_{i∈S} ℓ_i(θ_o)``. What a model without an example would get right anyway is
    hard to forget in a way that shows. The baseline that any search has to beat.

    Args:
        size: number of examples, or their fraction of the data.
        mode: ``worst`` for the hardest to forget, ``easiest`` for the opposite.

    Cost: one forward pass over the data.
    """

    size: int | float = 0.1
    mode: Literal["worst", "easiest"] = "worst"

    def __post_init__(self) -> None:
        check_size(self.size)

    def check(self, train: Data, task: Task) -> None:
        count(self.size, train)

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> Found:
        m = count(self.size, train)
        ranked = losses(model, train, task, session).argsort(descending=self.mode == "easiest", stable=True)
        word = "smallest" if self.mode == "worst" else "largest"
        return chosen(train, ranked[:m], f"those with the {word} loss under the original")
