"""What is known of manipulated data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Data
from expunge.errors import ConfigError, DataError
from expunge.searches.base import Search, searches
from expunge.searches.result import SearchResult
from expunge.tasks.base import Task
from expunge.training.session import Session


@searches.register("manipulated")
@dataclass(frozen=True, kw_only=True)
class Manipulated(Search):
    """The part of the manipulated examples that somebody has found: corrective unlearning.

    ``known · |S_m|`` of the manipulated examples ``S_m``, drawn without replacement; the others stay among
    the retained data. Retraining without the known ones still learns from the others, so it is no
    gold standard here: the retrained models of a table are trained without any of ``S_m``, and the
    method ``retrain`` shows what retraining on what is left gives. The data must have the column
    ``manipulated``, as that of the source ``poisoned``.

    Args:
        known: the fraction that is known, above 0 and up to 1.
        seed: of the draw, which depends on nothing else; a set with less known is part of one with more.

    Cost: none.
    References: Goel et al., Corrective Machine Unlearning, TMLR 2024, arXiv:2402.14015.
    """

    known: float = 1.0
    seed: int = 0

    reads_model = False

    def __post_init__(self) -> None:
        if not 0 < self.known <= 1:
            raise ConfigError(f"is a fraction above 0 and up to 1, got {self.known}.", "known")

    def check(self, train: Data, task: Task) -> None:
        self._manipulated(train)

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        ids = self._manipulated(train)
        order = torch.randperm(len(ids), generator=seeding.generator(self.seed, "manipulated"))
        count = max(1, round(self.known * len(ids)))
        words = f"{count} of the {len(ids)} manipulated examples"
        return SearchResult(torch.sort(ids[order[:count]]).values, words)

    def _manipulated(self, train: Data) -> Tensor:
        """Ids of all manipulated examples, ascending whatever the order of the data."""
        try:
            flags = train.column("manipulated")
        except DataError:
            raise DataError(
                "the training data does not say which examples are manipulated: it has no column "
                "'manipulated'. Use the data set 'poisoned', or add the column."
            ) from None
        ids = train.ids[flags == 1].sort().values
        if len(ids) == 0:
            raise DataError("no training example is marked as manipulated.")
        if len(ids) == len(train):
            raise DataError("every training example is manipulated; nothing would be kept.")
        return ids
