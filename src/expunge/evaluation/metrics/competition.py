"""The score of the NeurIPS 2023 machine unlearning competition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.errors import ConfigError, DataError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.distance import needs_classes
from expunge.evaluation.metrics.klom import ensembles, margins
from expunge.evaluation.score import Score
from expunge.evaluation.subject import Subject

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Definition = Literal["corrected", "conformance"]

DELTA = 1e-5
CAP = 50.0
BUCKET = 0.5

LEAST = 4
"""Models needed on either side: two to choose a rule by and two to judge it."""

PUBLISHED = 512
"""Models on either side in the competition."""

CUTS = 128
"""At most so many cuts of an example's confidences are tried (corrected)."""

PER_UNIT, BUFFER = 100, 2.0
"""The published grid: thresholds for each unit of confidence, and how far beyond the narrower side."""


@metrics.register("neurips2023")
@dataclass(frozen=True, kw_only=True)
class NeurIPS2023(Metric):
    """Forgetting quality by ε-unlearning of each forget example, times the utility kept.

    ``F × RA_u/RA_r × TA_u/TA_r``. For each forget example the logit-scaled confidences of ``N`` unlearned
    models are told from those of as many retrained ones by events ``S`` (a confidence above a threshold, or
    between two): ``ε = max_S log((P_a(S) − δ) / P_b(S))``, ``δ = 1e-5``, with ``a`` either side and ``b`` the
    other; 50 where they are separated perfectly or one is a hundred times narrower. ``F`` is the mean over
    examples of ``2^{−⌊2ε⌋}``, 0 from ``ε = ⌈ln(N − 1)⌉`` on. RA and TA are mean accuracies on retain and test
    of the unlearned (u) and the retrained models (r). It judges the method, of which the model of the row is
    one run. Classification only. Interval: bootstrap over forget examples at the utilities found.

    A retrained model's row compares half of the retrained models with the other half. Set ``models`` to
    compare rows: values that rest on different numbers of models have different biases.

    Ideal: what a perfect unlearner scores with as many models, which is ``perfect`` (by simulation from equal
        normal distributions): under ``conformance`` about a fifth, not 1.
    Cost: ``N`` unlearned and ``N`` retrained models (512 in the competition), each read once on three parts.
    Differs: the published code takes the largest ε of 160,000 rules on the very models that it is then
        reported for, so equal distributions look apart, and lets a utility ratio above 1 make up for
        forgetting. Here the rule with the largest ε less its standard error is chosen on one half of the
        models and its ε counted on the other half, in both directions, with half a count added to each
        rate; ratios are at most 1. ``definition: conformance`` reproduces the published score, with its
        grid of fixed width; not its ``assert`` on an array, which stops it where more than one rule is left.
        Where the published code finds no rule with errors on both sides it stops; here ε is then 0.
    References: Triantafillou et al., Are We Making Progress in Unlearning?, arXiv:2406.09073; code
        unlearning_evaluation.
    """

    models: int | None = None
    definition: Definition = "corrected"
    target = "high"

    def __post_init__(self) -> None:
        if self.models is not None and self.models < LEAST:
            raise ConfigError(f"must be at least {LEAST}, got {self.models}.", "models")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        few = "" if self.models is None else f"-{self.models}-models"
        ending = "-conformance" if self.definition == "conformance" else ""
        return "competition score", "forget", f"neurips2023{few}{ending}"

    def measure(self, evidence: Evidence) -> Score:
        needs_classes("the competition score", evidence)
        advice = f"the competition had {PUBLISHED}"
        unlearned, retrained = ensembles(evidence, self.models, LEAST, advice)
        mine, theirs = margins(unlearned, "forget"), margins(retrained, "forget")
        found = epsilons(mine, theirs, self.definition)
        models = min(len(mine), len(theirs))
        ratios = {part: self._utility(unlearned, retrained, part) for part in ("retain", "test")}
        values = points(found, models) * math.prod(ratios.values())
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.mean(values, clusters=evidence.clusters("forget")),
            n=len(values),
            target="high",
            unit="fraction",
            perfect=perfect(len(mine), len(theirs), self.definition),
            details={
                "models": {"unlearned": len(mine), "retrained": len(theirs)},
                "factors": {"forgetting": float(points(found, models).mean()), **ratios},
                "epsilon": {"mean": float(found.mean()), "median": float(np.median(found))},
            },
            per_example=torch.from_numpy(values),
        )

    def _utility(self, unlearned: Sequence[Subject], retrained: Sequence[Subject], part: str) -> float:
        mine, theirs = (
            float(np.mean([subject.read(part).score.double().mean() for subject in side]))
            for side in (unlearned, retrained)
        )
        if theirs == 0:
            raise DataError(
                f"the retrained models are never right on {part}: utility has nothing to refer to."
            )
        return mine / theirs if self.definition == "conformance" else min(1.0, mine / theirs)


def points(found: Floats, models: int) -> Floats:
    """What each ε earns, ``(n,)``: 1 in the first bucket of width ½, half as much in each further one.

    The last bucket ends at ``⌈ln(models − 1)⌉``, beyond which nothing is earned.
    """
    reach = math.ceil(math.log(models - 1)) if models > 1 else 0
    return np.asarray(np.where(found < reach, 0.5 ** np.floor(found / BUCKET), 0.0), dtype=np.float64)


def epsilons(unlearned: Floats, retrained: Floats, definition: Definition = "corrected") -> Floats:
    """ε of each example, ``(n,)`` in ``[0, 50]``, from confidences ``(N, n)`` and ``(M, n)``.

    Raises:
        DataError: the shapes do not fit, or a confidence is NaN or infinite.
    """
    if unlearned.ndim != 2 or retrained.ndim != 2 or unlearned.shape[1] != retrained.shape[1]:
        raise DataError(
            f"the competition score needs confidences of shape (models, examples) of the same examples, got "
            f"{unlearned.shape} and {retrained.shape}."
        )
    if not (np.isfinite(unlearned).all() and np.isfinite(retrained).all()):
        raise DataError("some confidences are NaN or infinite. Train those models again.")
    one = _in_sample if definition == "conformance" else _held_out
    return np.array([_epsilon(u, r, one) for u, r in zip(unlearned.T, retrained.T, strict=True)])


def _epsilon(unlearned: Floats, retrained: Floats, rule: Callable[[Floats, Floats], float]) -> float:
    first, second = float(np.ptp(unlearned)), float(np.ptp(retrained))
    if min(first, second) < 0.01 * max(first, second):
        return CAP
    return float(np.clip(rule(unlearned, retrained), 0, CAP))


def _in_sample(unlearned: Floats, retrained: Floats) -> float:
    """The published ε: the largest over single and double thresholds on a grid, on all models at once."""
    larger, smaller = np.sort(retrained), np.sort(unlearned)
    if np.median(retrained) <= np.median(unlearned):
        larger, smaller = smaller, larger
    low, high = min(larger[0], smaller[0]), max(larger[-1], smaller[-1])
    cuts = _reached(np.concatenate([larger, smaller]), low, high)
    missed = np.searchsorted(larger, cuts)
    wrong = len(smaller) - np.searchsorted(smaller, cuts)
    single = _published(len(larger), len(smaller))[wrong, missed].max(initial=-np.inf)
    narrow, wide = (smaller, larger) if np.ptp(larger) >= np.ptp(smaller) else (larger, smaller)
    steps = round(2 * BUFFER * PER_UNIT)
    step = 2 * BUFFER / (steps - 1)
    right = narrow[-1] - BUFFER + step * np.arange(steps)
    left = narrow[0] - 2 * BUFFER + step * np.arange(2 * steps - 1)
    missed = len(narrow) - _between(narrow, left, right)
    places = _between(wide, left, right) * (len(narrow) + 1) + missed
    double = _published(len(narrow), len(wide)).ravel().take(places).max()
    return float(max(single, double, 0.0))


def _reached(values: Floats, low: float, high: float) -> Floats:
    """Of the grid's equal steps from ``low`` to ``high`` those next to a value: no other cut differs."""
    count = math.ceil((high - low) * PER_UNIT)
    if count < 2:
        return np.full(count, low)
    step = (high - low) / (count - 1)
    nearest = np.round((values - low) / step)
    places = np.unique(np.clip(nearest[:, None] + [-1, 0, 1], 0, count - 1))
    return np.where(places == count - 1, high, low + places * step)


def _between(ordered: Floats, left: Floats, right: Floats) -> Counts:
    """How many values lie in ``[left_{j+k}, right_j]``, ``(len(right), len(right))`` by ``j`` and ``k``."""
    above = np.searchsorted(ordered, right, side="right")
    below = np.lib.stride_tricks.sliding_window_view(np.searchsorted(ordered, left), len(right))
    return np.asarray(np.maximum(above[:, None] - below, 0), dtype=np.int64)


@lru_cache(maxsize=16)
def _published(positives: int, negatives: int) -> Floats:
    """ε by the counts of false positives and false negatives, ``(negatives + 1, positives + 1)``.

    ``max(log((1−δ−FPR)/FNR), log((1−δ−FNR)/FPR))``, at least 0; ``inf`` without any error, ``−inf`` with
    errors on one side only, which rules the threshold out.
    """
    fpr = np.arange(negatives + 1)[:, None] / negatives
    fnr = np.arange(positives + 1)[None] / positives
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.fmax(np.log(1 - DELTA - fpr) - np.log(fnr), np.log(1 - DELTA - fnr) - np.log(fpr))
    found = np.where(np.isnan(found), -np.inf, np.maximum(found, 0))
    found[fpr * fnr == 0] = -np.inf
    found[0, 0] = np.inf
    return np.asarray(found, dtype=np.float64)


@dataclass(frozen=True)
class _Event:
    """``low ≤ confidence < high``, or not that, likelier under one side than under the other."""

    low: float
    high: float
    outside: bool
    retrained_likelier: bool

    def count(self, values: Floats) -> int:
        inside = (values >= self.low) & (values < self.high)
        return int((inside != self.outside).sum())


def _held_out(unlearned: Floats, retrained: Floats) -> float:
    """The corrected ε: events chosen on every other model, counted on the rest, in both directions."""
    likelier, other = [0, 0], [0, 0]  # models that show the event, of how many
    for start in (0, 1):
        event = _best_event(unlearned[start::2], retrained[start::2])
        sides = [unlearned[1 - start :: 2], retrained[1 - start :: 2]]
        if event.retrained_likelier:
            sides.reverse()
        for counts, values in zip((likelier, other), sides, strict=True):
            counts[0] += event.count(values)
            counts[1] += len(values)
    if likelier[0] == likelier[1] and other[0] == 0:
        return CAP
    return float(_ratios(likelier[1], other[1], 0.0)[likelier[0], other[0]])


def _best_event(unlearned: Floats, retrained: Floats) -> _Event:
    """The interval or complement of one with the largest ε less its standard error, in either direction."""
    values = np.unique(np.concatenate([unlearned, retrained]))
    middles = (values[1:] + values[:-1]) / 2
    if len(middles) > CUTS:
        middles = middles[np.linspace(0, len(middles) - 1, CUTS).astype(int)]
    cuts = np.concatenate([[-np.inf], middles, [np.inf]])
    first, second = (_inside(np.sort(side), cuts) for side in (unlearned, retrained))
    n, m = len(unlearned), len(retrained)
    best, chosen = -np.inf, _Event(-np.inf, np.inf, False, False)
    for outside in (False, True):
        mine, theirs = (n - first, m - second) if outside else (first, second)
        for swapped in (False, True):
            a, b, size_a, size_b = (theirs, mine, m, n) if swapped else (mine, theirs, n, m)
            limits = _ratios(size_a, size_b, 1.0).ravel().take(a * (size_b + 1) + b)
            place = int(limits.argmax())
            if limits.flat[place] > best:
                i, j = divmod(place, len(cuts))
                best = float(limits.flat[place])
                chosen = _Event(float(cuts[i]), float(cuts[j]), outside, swapped)
    return chosen


def _inside(ordered: Floats, cuts: Floats) -> Counts:
    """How many values lie between the cuts ``i`` and ``j``, ``(len(cuts), len(cuts))``; 0 where ``j ≤ i``."""
    below = np.searchsorted(ordered, cuts)
    return np.asarray(np.maximum(below[None] - below[:, None], 0), dtype=np.int64)


@lru_cache(maxsize=16)
def _ratios(n: int, m: int, errors: float) -> Floats:
    """``log((p − δ)/q)``, less so many standard errors, by an event's counts; ``(n + 1, m + 1)``.

    ``p = (a + ½)/(n + 1)``, ``q = (b + ½)/(m + 1)``, and the standard error of a log ratio of rates,
    ``√(1/(a + ½) − 1/(n + 1) + 1/(b + ½) − 1/(m + 1))``.
    """
    a, b = np.arange(n + 1)[:, None] + 0.5, np.arange(m + 1)[None] + 0.5
    error = np.sqrt(1 / a - 1 / (n + 1) + 1 / b - 1 / (m + 1))
    return np.asarray(np.log(a / (n + 1) - DELTA) - np.log(b / (m + 1)) - errors * error, dtype=np.float64)


@lru_cache(maxsize=32)
def perfect(
    unlearned: int, retrained: int, definition: Definition = "corrected", examples: int = 200
) -> float:
    """What a perfect unlearner scores on average: both sides drawn from one standard normal, full utility.

    Seeded and cached; the standard error is about 0.02. The published grid has a fixed width, so under
    ``conformance`` confidences that spread less or more than 1 give somewhat other values.
    """
    generator = np.random.default_rng(0)
    mine, theirs = (generator.standard_normal((models, examples)) for models in (unlearned, retrained))
    return float(points(epsilons(mine, theirs, definition), min(unlearned, retrained)).mean())
