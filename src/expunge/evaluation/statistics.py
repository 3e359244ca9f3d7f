"""Intervals. One function for each kind of number, seeded where it draws."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

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
