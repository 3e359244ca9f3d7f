"""Intervals. One function for each kind of number, seeded where it draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Confidence level of every interval."""

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
    """Means of ``resamples`` draws with replacement. Shape ``(resamples,)``."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    return np.asarray(counts @ values / len(values), dtype=np.float64)


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
