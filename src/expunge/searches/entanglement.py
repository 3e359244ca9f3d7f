"""The forget set that lies most among the retained data in the original's representation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.errors import DataError
from expunge.evaluation.subject import Subject
from expunge.searches.base import Mode, Sized, chosen, searches
from expunge.searches.result import SearchResult
from expunge.searches.units import Units
from expunge.tasks.base import Task
from expunge.training.session import Session


@searches.register("entanglement")
@dataclass(frozen=True, kw_only=True)
class Entanglement(Sized):
    """The most entangled set (``worst``) of units at equal distance from the centre, or the least so.

    ``ES(S) = (mean_{i∈R} ‖φ_i − μ_R‖² + mean_{i∈S} ‖φ_i − μ_S‖²) / (½ (‖μ_R − μ‖² + ‖μ_S − μ‖²))``

    with ``φ`` the penultimate representation under the original, ``R`` what is retained, ``μ_R``, ``μ_S``
    and ``μ`` the means of retained, forgotten and all examples: what sets vary in over what they differ
    in. The units are ranked by their mean distance ``‖φ_i − μ‖``; of all runs of ``m`` that follow each
    other in this ranking, the set is that of the largest ``ES``, or of the smallest. ``details`` holds
    its ``ES``, that of either end of the ranking and the place of the run in it.

    Args:
        size: ``m``, a number of units or their fraction of all.
        unit: what is forgotten whole: ``example``, ``class``, ``subject`` or ``prompt``.
        mode: ``worst`` for the largest entanglement, ``easiest`` for the smallest.
        module: read the input of this module in the place of the last linear layer's.

    Cost: one forward pass over the data.
    Differs: the authors cut the same ranking into 15 groups of which they take the fourth, the
        thirteenth and the last, by growing distance, as three sets of different ``ES``. Which end of the
        ranking is the more entangled differs from one model to the next, so here every run of the length
        asked for is scored. Their code takes for ``μ`` the midpoint of the other two means, which
        multiplies the ``ES`` of a fraction ``f`` of the data by ``2 (f² + (1 − f)²)`` and leaves the order
        of sets of one size as it is; and it averages the means of batches whatever the size of the last
        one, which on large values tells (207 for 1,440 in batches of 64). A large ``ES`` is nothing
        unusual: of sets of 5 % of the handwritten digits, under a small network, the runs have 25 to
        731 and random sets 316 in the median.
    References: Zhao et al., What makes unlearning hard and what to do about it, NeurIPS 2024,
        arXiv:2406.01257; the score: Goldblum et al., Unraveling Meta-Learning, ICML 2020,
        arXiv:2002.06753.
    """

    mode: Mode = "worst"
    module: str | None = None

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        units = Units.read(train, task, self.unit)
        m = units.count(self.size)
        subject = Subject("search", model, {"train": train}, task, session)
        phi = subject.features("train", self.module).double()
        phi = phi - phi.mean(0)
        if not phi.any():
            raise DataError("all examples have the same representation under this model. Train it first.")
        ranked = units.mean(torch.linalg.vector_norm(phi, dim=1)).argsort(stable=True)
        scores = _entanglement(phi, units, ranked, m)
        start = int(scores.argmax() if self.mode == "worst" else scores.argmin())
        word = "most" if self.mode == "worst" else "least"
        words = f"those {word} entangled with the rest, by distance from the centre"
        found = chosen(train, units.rows(ranked[start : start + m]), words, self.unit)
        said = {"entanglement": scores[start], "nearest": scores[0], "furthest": scores[-1]}
        return replace(found, details={**{k: float(v) for k, v in said.items()}, "rank": start})


def _entanglement(phi: Tensor, units: Units, ranked: Tensor, m: int) -> Tensor:
    """``ES`` of the units ``ranked[k : k + m]`` for every ``k``, ``(U − m + 1,)``; ``phi`` has mean 0."""
    blank = torch.zeros(len(units), dtype=phi.dtype)
    counts = blank.index_add(0, units.of, torch.ones_like(phi[:, 0]))
    squares = blank.index_add(0, units.of, phi.square().sum(1))
    sums = torch.zeros(len(units), phi.shape[1], dtype=phi.dtype).index_add(0, units.of, phi)

    def runs(values: Tensor) -> Tensor:
        total = torch.cat([torch.zeros_like(values[:1]), values[ranked].cumsum(0)])
        return total[m:] - total[:-m]

    n, square, total = runs(counts), runs(squares), runs(sums)
    forgotten, retained = total / n[:, None], -total / (len(phi) - n)[:, None]
    between = (forgotten.square().sum(1), retained.square().sum(1))
    within = square / n - between[0] + (phi.square().sum() - square) / (len(phi) - n) - between[1]
    least = 1e-12 * phi.square().sum() / len(phi)  # equal means to rounding: entangled, but not infinitely
    return within.clamp_min(0) / (0.5 * (between[0] + between[1])).clamp_min(least)
