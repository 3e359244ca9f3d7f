"""The examples that the original fits best, or worst."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.searches.base import Ranking, losses, searches
from expunge.tasks.base import Task
from expunge.training.session import Session


@searches.register("loss_ranking")
@dataclass(frozen=True, kw_only=True)
class LossRanking(Ranking):
    """The ``m`` units with the smallest loss under the original (``worst``), or the largest (``easiest``).

    ``argmin_{|S|=m} Σ_{i∈S} ℓ_i(θ_o)``. What a model without an example would get right anyway is
    hard to forget in a way that shows. The baseline that any search has to beat.

    Args:
        size: number of units, or their fraction of all.
        unit: what is forgotten whole: ``example``, ``class``, ``subject`` or ``prompt``.
        mode: ``worst`` for the hardest to forget, ``easiest`` for the opposite.

    Cost: one forward pass over the data.
    """

    words = (
        "those with the smallest loss under the original",
        "those with the largest loss under the original",
    )

    def hardness(self, model: nn.Module, train: Data, task: Task, session: Session) -> Tensor:
        return -losses(model, train, task, session)
