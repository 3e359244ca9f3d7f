"""The examples near to the middle of their class, or far from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.evaluation.subject import Subject
from expunge.searches.base import Ranking, reading, searches
from expunge.searches.result import SearchResult
from expunge.searches.units import Units
from expunge.tasks.base import Task
from expunge.training.session import Session


@searches.register("moderate")
@dataclass(frozen=True, kw_only=True)
class Moderate(Ranking):
    """The ``m`` units nearest to their class median and furthest from it: what a moderate coreset leaves out.

    ``d_i = ‖z_i − median_{j: y_j = y_i} z_j‖₂``, the median taken coordinate by coordinate, ``z`` the logits
    or the penultimate representation under the original. The coreset keeps the middle of the ranking by
    ``d``; what it leaves out, the most typical and the most unusual in equal parts, is the worst set.

    Args:
        size: number of units, or their fraction of all.
        unit: what is forgotten whole: ``example``, ``class``, ``subject`` or ``prompt``, ranked by its mean
            distance.
        mode: ``worst`` for the hardest to forget, ``easiest`` for the opposite.
        take: ``ends``: worst is what lies outside of the middle ``N − m``, easiest the middle ``m``;
            ``near``: worst is nearest to the median, what a model without it would say too, and easiest
            is furthest.
        on: ``logits`` or ``features``.

    Cost: one forward pass over the data.
    Differs: that ``ends`` are the hard ones is how the release uses it as a baseline for its worst-case
        sets; half of such a set is unusual examples, so ``near`` is offered. The release's count is that
        of the kept examples though its help says forgotten (4,500 of 45,000 forgets 40,500); here
        ``size`` is what is forgotten. It reads logits in training mode and of augmented images, and
        takes for the median of a class with one example a single number; here evaluation mode, no
        augmentation, and the example itself.
    References: Xia et al., Moderate Coreset, ICLR 2023; as a baseline: Fan et al., Challenging Forgets,
        ECCV 2024, arXiv:2403.07362.
    """

    take: Literal["ends", "near"] = "ends"
    on: Literal["logits", "features"] = "logits"

    def check(self, train: Data, task: Task) -> None:
        task.groups(train)
        super().check(train, task)

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        ends = ("outside of the middle band", "in the middle band")
        word = (ends if self.take == "ends" else ("nearest", "furthest"))[self.mode == "easiest"]
        found = super().search(model, train, task, session)
        return replace(found, description=f"those {word} by their distance from the class median")

    def hardness(self, model: nn.Module, train: Data, task: Task, session: Session) -> Tensor:
        self.check(train, task)
        distance = _distances(self._read(model, train, task, session), task.groups(train))
        if self.take == "near":
            return -distance
        units = Units.read(train, task, self.unit)
        ranks = units.mean(distance).argsort(stable=True).argsort()
        # the band grows from rank N//2 on downwards first, so that it is middle whatever its length
        return (ranks - (len(units) // 2 - 0.25)).abs()[units.of]

    def _read(self, model: nn.Module, train: Data, task: Task, session: Session) -> Tensor:
        if self.on == "logits":
            return reading(model, train, task, session).outputs.flatten(1)
        return Subject("search", model, {"train": train}, task, session).features("train")


def _distances(rows: Tensor, labels: Tensor) -> Tensor:
    """``‖z_i − median of its class‖``, ``(N,)`` float64; between two middle values their mean."""
    found = torch.zeros(len(rows), dtype=torch.float64)
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        ordered = rows[own].double().sort(0).values
        median = (ordered[(len(own) - 1) // 2] + ordered[len(own) // 2]) / 2
        found[own] = torch.linalg.vector_norm(rows[own].double() - median, dim=1)
    return found
