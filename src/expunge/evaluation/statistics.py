"""Intervals. One function for each kind of number, seeded where it draws."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from expunge.errors import DataError

LEVEL = 0.95
"""Confidence level of every interval."""

BLOCKS = 1000
"""The bootstrap draws from at most so many values or blocks of values."""

Floats = NDArray[np.float64]


def rate(successes: int, n: int) -> tuple[float, float]:
    """Clopper–Pearson interval of a rate: exact, never narrower than its level says.

    ``[B(α/2; k, n−k+1), B(1−α/2; k+1, n−k)]`` with ``B`` the quantiles of the beta distribution.
    """
    from scipy.special import betaincinv

    tail = (1 - LEVEL) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def mean(values: Floats, seed: int = 0, resamples: int = 1000) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    return percentile(resampled_means(values, seed, resamples))


def standard_error(values: Floats, clusters: Tensor | None = None, agreements: bool = False) -> float:
    """The standard error of a mean, of examples or of whole subjects.

    ``√(Σ_g (Σ_{i∈g} (v_i − v̄))² · G/(G−1)) / n`` over ``G`` clusters ``g``; without clusters every value
    is one. ``agreements`` adds the values 1 and −1. ``inf`` for fewer than two clusters.
    """
    groups = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    if agreements:
        values = np.append(values, [1.0, -1.0])
        groups = np.append(groups, groups.max() + np.array([1, 2]))
    sums = np.bincount(groups, weights=values - values.mean())
    count = len(sums)
    if count < 2:
        return float("inf")
    return float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(values))


def resampled_means(values: Floats, seed: int, resamples: int = 1000) -> Floats:
    """Means of ``resamples`` draws with replacement. Shape ``(resamples,)``.

    More than ``BLOCKS`` values are first gathered in so many random blocks of equal size (up to
    one), and the blocks are drawn: the same spread of the mean at a cost that does not grow.
    """
    sums, sizes = values, np.ones(len(values))
    if len(values) > BLOCKS:
        order = np.random.default_rng(seed).permutation(len(values))
        starts = np.arange(BLOCKS) * len(values) // BLOCKS
        sums = np.add.reduceat(values[order], starts)
        sizes = np.diff(np.append(starts, len(values))).astype(np.float64)
    drawn = _draws(len(sums), seed, resamples)
    return np.asarray((drawn @ sums) / (drawn @ sizes), dtype=np.float64)


@lru_cache(maxsize=8)
def _draws(n: int, seed: int, resamples: int) -> Floats:
    """How often each of ``n`` items is in each resample. Shape ``(resamples, n)``."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def percentile(draws: Floats) -> tuple[float, float]:
    """The central part of bootstrap draws that holds ``LEVEL`` of them."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def mean_of_few(values: Floats) -> tuple[float, float] | None:
    """Student's t interval of a mean of a handful of repetitions; None for fewer than two."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return None
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * float(values.std(ddof=1)) / n**0.5
    centre = float(values.mean())
    return centre - half, centre + half


def auc(positives: Floats, negatives: Floats) -> tuple[float, tuple[float, float] | None]:
    """Area under the ROC curve and its interval (DeLong, on the logit scale).

    ``P(positive > negative) + ½ P(equal)``; variance by DeLong's placement values. No interval for
    fewer than two of either.
    """
    from scipy.stats import rankdata

    n, m = len(positives), len(negatives)
    both = rankdata(np.concatenate([positives, negatives]))
    above = (both[:n] - rankdata(positives)) / m  # of each positive: the fraction of negatives below it
    below = 1 - (both[n:] - rankdata(negatives)) / n
    value = float(above.mean())
    if n < 2 or m < 2:
        return value, None
    error = float(np.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m))
    if not 0 < value < 1 or error == 0:
        return value, rate(round(value * min(n, m)), min(n, m))
    centre, half = np.log(value / (1 - value)), 1.959964 * error / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-(centre - half))), 1 / (1 + np.exp(-(centre + half)))
    return value, (float(low), float(high))


def tpr_at(positives: Floats, negatives: Floats, fpr: float) -> tuple[float, tuple[float, float] | None]:
    """True positive rate at the lowest threshold with at most ``fpr`` false positives; Clopper–Pearson.

    Raises:
        DataError: with so few negatives not even one false positive is allowed.
    """
    allowed = int(fpr * len(negatives) + 1e-9)
    if allowed < 1:
        raise DataError(
            f"a false positive rate of {fpr:.2%} needs at least {int(np.ceil(1 / fpr))} non-members; there "
            f"are {len(negatives)}."
        )
    threshold = np.sort(negatives)[-allowed - 1] if allowed < len(negatives) else -np.inf
    found = int((positives > threshold).sum())
    return found / len(positives), rate(found, len(positives))


def balanced_accuracy(positives: Floats, negatives: Floats) -> tuple[float, tuple[float, float] | None]:
    """``max_t ½ (P(positive ≥ t) + P(negative < t))`` and a percentile bootstrap interval."""
    raise NotImplementedError
