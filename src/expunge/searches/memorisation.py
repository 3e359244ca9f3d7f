"""The examples that had to be memorised, or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.errors import ConfigError, DataError
from expunge.evaluation.shadows import ShadowPlan, halves
from expunge.searches.base import Ranking, reading, searches
from expunge.searches.early import required
from expunge.searches.units import Units
from expunge.tasks.base import Task
from expunge.training.ensemble import train_many
from expunge.training.session import Session


@searches.register("memorisation")
@dataclass(frozen=True, kw_only=True)
class Memorisation(Ranking):
    """The ``m`` units that are memorised least (``worst``), or most (``easiest``).

    ``mem_i = mean_{k: i ∈ D_k} s_i(θ_k) − mean_{k: i ∉ D_k} s_i(θ_k)``: how much better models do on
    example ``i`` for having been trained on it. The models ``θ_k`` are trained on random parts ``D_k`` of
    the data in which every unit is in the same number of parts. Where ``mem`` is 0, a model without the
    example says the same as one with it.

    Args:
        size: number of units, or their fraction of all.
        unit: what is forgotten whole: ``example``, ``class``, ``subject`` or ``prompt``. The parts hold
            whole units, so that what is measured is the influence of the unit on itself.
        mode: ``worst`` for the hardest to forget, ``easiest`` for the opposite.
        models: number of models; ``models · fraction`` must be whole.
        fraction: of the units that each is trained on.
        score: ``s_i``: ``confidence``, the probability of the label, or ``correct``, the task's own score,
            for a classifier 0 or 1.

    Cost: once for all sets of one training set ``models`` trainings on ``fraction`` of it, and a forward
        pass of each.
    Differs: the paper's score is ``correct``, over 2,000 to 4,000 models on 0.7 of the data (an authors'
        release that builds forget sets of it trains 400); over 16 models most of a fitted data set has
        the score 0 exactly, and a ranking among equals is the order of the data. With ``confidence``
        they differ. The paper draws each part on its own, so the number of models with an example
        varies; here it is the same for all.
    References: Feldman and Zhang, What Neural Networks Memorize and Why, NeurIPS 2020, arXiv:2008.03703;
        forget sets by memorisation: Zhao et al., What makes unlearning hard and what to do about it,
        NeurIPS 2024, arXiv:2406.01257.
    """

    models: int = 16
    fraction: float = 0.5
    score: Literal["confidence", "correct"] = "confidence"

    words = ("those that are memorised least", "those that are memorised most")
    needs_recipe: ClassVar[bool] = True
    prepared_by = ("models", "fraction", "score", "unit")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self._plan()
        except ConfigError as error:
            raise ConfigError(error.message, "models" if error.path == "count" else error.path) from None

    def _plan(self) -> ShadowPlan:
        return ShadowPlan(count=self.models, fraction=self.fraction)

    def check(self, train: Data, task: Task) -> None:
        super().check(train, task)
        self._parts(Units.read(train, task, self.unit), torch.Generator())

    def prepare(self, train: Data, task: Task, session: Session) -> dict[str, Tensor]:
        """The memorisation of each example, ``(N,)``."""
        recipe = required(session, "memorisation")
        inside = self._parts(Units.read(train, task, self.unit), session.generator("parts"))
        data = [train.subset(train.ids[row]) for row in inside]
        sessions = [replace(session.child("part", k), recipe=None) for k in range(self.models)]
        rows = []
        for model in train_many(recipe, data, sessions, what="part").models:
            said = reading(model, train, task, session)
            rows.append(said.confidence if self.score == "confidence" else said.score)
        scores, weights = torch.stack(rows).double(), inside.double()
        within = (scores * weights).sum(0) / weights.sum(0)
        without = (scores * (1 - weights)).sum(0) / (1 - weights).sum(0)
        return {"memorisation": within - without}

    def hardness(self, model: nn.Module, train: Data, task: Task, session: Session) -> Tensor:
        self.check(train, task)
        return -(session.prepared or self.prepare(train, task, session))["memorisation"]

    def _parts(self, units: Units, generator: torch.Generator) -> Tensor:
        """Which model is trained on which example, ``(models, N)``."""
        inside = halves(len(units), self._plan(), generator)
        if not inside.any(1).all():
            raise DataError(
                f"{len(units)} units of kind '{self.unit}' are too few for models on {self.fraction:g} of "
                "them: some would be trained on nothing. Set a larger fraction."
            )
        return inside[:, units.of]
