"""Intervals. One function for each kind of number, seeded where it draws.

Their coverage is measured by simulation in ``bench/calibration.py``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from expunge.errors import DataError

LEVEL = 0.95
"""Confidence level of every interval."""

Z = 1.959963984540054
"""``Φ⁻¹((1 + LEVEL)/2)``."""

BLOCKS = 1000
"""The bootstrap draws from at most so many values or blocks of values."""

SPLITS = 10
"""Random halvings that a balanced accuracy is averaged over."""

Floats = NDArray[np.float64]


def rate(successes: int, n: int) -> tuple[float, float]:
    """Clopper–Pearson interval of a rate: exact, never narrower than its level says.

    ``[B(α/2; k, n−k+1), B(1−α/2; k+1, n−k)]`` with ``B`` the quantiles of the beta distribution. It
    covers at least 95 %, often 97 % and more; ``wilson`` covers 95 % on average.
    """
    from scipy.special import betaincinv

    tail = (1 - LEVEL) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a rate: 95 % on average over rates, narrower than the exact one.

    ``(p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n)``.

    References: Wilson, JASA 22, 1927; Brown, Cai and DasGupta, Statistical Science 16, 2001.
    """
    if n < 1:
        raise DataError("a rate of no examples has no interval.")
    return _score_interval(successes / n, n)


def _score_interval(p: float, n: int) -> tuple[float, float]:
    extra = Z**2 / n
    half = Z * float(np.sqrt(p * (1 - p) / n + extra / (4 * n)))
    low, high = (p + extra / 2 - half) / (1 + extra), (p + extra / 2 + half) / (1 + extra)
    return (0.0 if p == 0 else float(low)), (1.0 if p == 1 else float(high))


def mean(
    values: Floats, seed: int = 0, resamples: int = 1000, clusters: ArrayLike | Tensor | None = None
) -> tuple[float, float] | None:
    """Interval of a mean; None for fewer than two values (or clusters).

    BCa bootstrap: the percentiles ``Φ(z₀ + (z₀ ± z')/(1 − a (z₀ ± z')))`` of the bootstrap means, with
    the bias ``z₀`` from the draws, the acceleration ``a = Σ d³ / 6 (Σ d²)^1.5`` of the deviations ``d``,
    and ``z' = t_{n−1} √(n/(n−1))`` for ``z``, without which the bootstrap of few values is too narrow.
    With ``clusters`` (the data subject of each value) whole subjects are the unit: ``v̄ ± t_df · SE`` with
    ``standard_error`` and ``degrees_of_freedom``, which holds from about ten subjects of unequal size.

    References: Efron, JASA 82, 1987; Hesterberg, The American Statistician 69, 2015, 3.3 (``z'``).
    """
    if len(values) < 2:
        return None
    centre = float(values.mean())
    if clusters is not None:
        return _around(centre, standard_error(values, clusters), degrees_of_freedom(clusters))
    if float(np.ptp(values)) == 0.0:
        return centre, centre
    return _bca(values, centre, resamples, seed)


def _around(centre: float, error: float, df: float) -> tuple[float, float] | None:
    from scipy.special import stdtrit

    if not np.isfinite(error):
        return None
    half = float(stdtrit(df, (1 + LEVEL) / 2)) * error
    return centre - half, centre + half


def _bca(values: Floats, centre: float, resamples: int, seed: int) -> tuple[float, float]:
    from scipy.special import ndtr, ndtri, stdtrit

    n = len(values)
    draws = resampled_means(values, seed, resamples)
    below = (np.count_nonzero(draws < centre) + np.count_nonzero(draws <= centre)) / (2 * resamples)
    bias = float(ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples)))
    deviations = values - centre
    squares = deviations * deviations
    acceleration = float((squares @ deviations) / (6 * squares.sum() ** 1.5))
    z = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * (n / (n - 1)) ** 0.5
    shifted = bias + np.array([-z, z])
    levels = ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-3))
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def interval(values: Floats, clusters: ArrayLike | Tensor | None = None) -> tuple[float, float] | None:
    """Interval of the mean of per-example values: Clopper–Pearson where all are 0 or 1, else ``mean``.

    With ``clusters``, one data subject's number for each value, it is over subjects in either case.
    """
    if clusters is None and bool(np.isin(values, (0.0, 1.0)).all()):
        return rate(int(values.sum()), len(values))
    return mean(values, clusters=clusters)


def standard_error(
    values: Floats, clusters: ArrayLike | Tensor | None = None, agreements: bool = False
) -> float:
    """The standard error of a mean, of examples or of whole subjects.

    ``√(Σ_g (Σ_{i∈g} (v_i − v̄))² / (1 − n_g/n)) / n`` over clusters ``g`` of ``n_g`` values (the CR2
    estimate); without clusters every value is one. ``agreements`` adds the values 1 and −1. ``inf`` for
    fewer than two clusters.

    References: Bell and McCaffrey, Survey Methodology 28, 2002.
    """
    n = len(values)
    groups = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if agreements:
        values = np.append(values, [1.0, -1.0])
        groups = np.append(groups, groups.max() + np.array([1, 2]))
    sums = np.bincount(groups, weights=values - values.mean())
    if len(sums) < 2:
        return float("inf")
    shares = np.bincount(groups) / len(values)
    return float(np.sqrt((sums**2 / (1 - shares)).sum()) / len(values))


def degrees_of_freedom(clusters: ArrayLike | Tensor) -> float:
    """Of a clustered ``standard_error``: clusters less one, and fewer where their sizes ``n_g`` differ.

    Satterthwaite's ``(tr M)² / tr M²`` of the estimate's quadratic form ``M``, for values that are the
    same within a cluster, the worst case: ``M_gh = Cov(e_g, e_h) / √((1 − w_g)(1 − w_h))`` with the
    shares ``w_g = n_g/n`` and ``Cov(e_g, e_h) = w_g² [g = h] − w_g w_h (w_g + w_h) + w_g w_h Σ w²``.
    """
    sizes = np.unique(np.asarray(clusters), return_counts=True)[1]
    if len(sizes) < 2:
        return 1.0
    w = sizes / sizes.sum()
    scale = 1 / (1 - w)
    # M = diag(d) + rank two, so that tr M² needs no matrix of all pairs
    squares = float((w**2).sum())
    diagonal = scale * w**2 * (1 - 2 * w + squares)
    plain = scale * w**2
    one, two, three = (float((plain * w**power).sum()) for power in range(3))
    pairs = 2 * one * three + 2 * two**2 - 4 * squares * one * two + squares**2 * one**2
    own = (scale * w**2 * (squares - 2 * w)) ** 2
    total = float((diagonal**2).sum()) + pairs - float(own.sum())
    return max(1.0, float(diagonal.sum()) ** 2 / total)


def resampled_means(values: Floats, seed: int, resamples: int = 1000) -> Floats:
    """Means of ``resamples`` draws with replacement. Shape ``(resamples,)``.

    More than ``BLOCKS`` values are first gathered in so many random blocks of equal size (up to
    one), and the blocks are drawn: the same spread of the mean at a cost that does not grow.
    """
    sums, sizes = values, np.ones(len(values))
    if len(values) > BLOCKS:
        starts = np.arange(BLOCKS) * len(values) // BLOCKS
        sums = np.add.reduceat(values[_order(len(values), seed)], starts)
        sizes = np.diff(np.append(starts, len(values))).astype(np.float64)
    drawn = _draws(len(sums), seed, resamples)
    return np.asarray((drawn @ sums) / (drawn @ sizes), dtype=np.float64)


@lru_cache(maxsize=4)
def _order(n: int, seed: int) -> NDArray[np.intp]:
    return np.random.default_rng(seed).permutation(n)


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
    n = len(values)
    if n < 2:
        return None
    return _around(float(values.mean()), float(values.std(ddof=1)) / n**0.5, n - 1)


def auc(positives: Floats, negatives: Floats) -> tuple[float, tuple[float, float] | None]:
    """Area under the ROC curve and its interval (DeLong, on the logit scale).

    ``P(positive > negative) + ½ P(equal)``; variance by DeLong's placement values, with Student's t of
    Welch's degrees of freedom. It covers 95 %, but 91 to 93 % for an AUC of 0.95 with 50 or fewer of one
    and ten times as many of the other.
    Where the placement values do not vary (perfect separation, constant scores) Newcombe's score
    interval. No interval for fewer than two of either.

    References: DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988; Newcombe, Statistics in Medicine
    25, 2006 (method 5).
    """
    from scipy.special import stdtrit

    n, m = len(positives), len(negatives)
    high, low = np.sort(positives), np.sort(negatives)
    above = (np.searchsorted(low, high) + np.searchsorted(low, high, side="right")) / (2 * m)
    value = float(above.mean())
    if n < 2 or m < 2:
        return value, None
    below = (np.searchsorted(high, low) + np.searchsorted(high, low, side="right")) / (2 * n)
    parts = np.array([above.var(ddof=1) / n, below.var(ddof=1) / m])
    error = float(np.sqrt(parts.sum()))
    if not 0 < value < 1 or error == 0:
        return value, (_newcombe(value, n, m, -1), _newcombe(value, n, m, 1))
    df = parts.sum() ** 2 / (parts**2 / np.array([n - 1, m - 1])).sum()
    quantile = float(stdtrit(df, (1 + LEVEL) / 2))
    centre, half = np.log(value / (1 - value)), quantile * error / (value * (1 - value))
    ends = 1 / (1 + np.exp(-(centre + np.array([-half, half]))))
    return value, (float(ends[0]), float(ends[1]))


def _newcombe(value: float, n: int, m: int, side: int) -> float:
    """The AUC ``θ`` on one side with ``|θ − value| = z √V(θ)``, by bisection."""
    few = (n + m) / 2 - 1

    def far(theta: float) -> bool:
        spread = 1 + few * (1 - theta) / (2 - theta) + few * theta / (1 + theta)
        return (theta - value) ** 2 > Z**2 * theta * (1 - theta) * spread / (n * m)

    inside, outside = value, 0.0 if side < 0 else 1.0
    if inside == outside:
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if far(middle) else (middle, outside)
    return inside


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
    """``½ (P(positive ≥ t) + P(negative < t))`` at the best threshold ``t``, found on other examples.

    The largest value over all thresholds of the same examples is above ½ even where there is nothing to
    find. So both sides are cut in random halves (seeded), each half is judged at the threshold that is
    best on the other, and the two rates are averaged over both directions and ``SPLITS`` cuts: ½ on
    average for scores that carry no information. It estimates what a threshold learnt from half of the
    examples reaches, a little (0.01 with 50 of each) below the best possible one.
    Interval: from the Wilson intervals ``(l, u)`` of the two rates,
    ``v − ½ √((p₁ − l₁)² + (p₂ − l₂)²)`` and ``v + ½ √((u₁ − p₁)² + (u₂ − p₂)²)``.

    Raises:
        DataError: fewer than two of either.

    References: Newcombe, Statistics in Medicine 17, 1998 (the combination).
    """
    n, m = len(positives), len(negatives)
    if min(n, m) < 2:
        raise DataError(
            f"a balanced accuracy needs at least two members and two non-members, to find the threshold on "
            f"half of them; there are {n} and {m}."
        )
    scores = np.concatenate([positives, negatives])
    order = np.argsort(scores, kind="stable")
    scores, positive = scores[order], order < n
    generator = np.random.default_rng(0)
    found = np.zeros(2)
    for _ in range(SPLITS):
        half = np.concatenate([generator.permutation(count) % 2 == 0 for count in (n, m)])[order]
        for known in (half, ~half):
            cut = np.searchsorted(scores, _best_threshold(scores[known], positive[known]))
            found += (
                np.count_nonzero(positive[cut:] & ~known[cut:]),
                np.count_nonzero(~positive[:cut] & ~known[:cut]),
            )
    first, second = found / (SPLITS * np.array([n, m]))
    (low1, high1), (low2, high2) = _score_interval(first, n), _score_interval(second, m)
    value = float(first + second) / 2
    down = float(np.hypot(first - low1, second - low2)) / 2
    up = float(np.hypot(high1 - first, high2 - second)) / 2
    return value, (max(0.0, value - down), min(1.0, value + up))


def _best_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Half-way between the two of the sorted scores where cutting is best; of several cuts the middle one."""
    cuts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1], [True]]))
    ones = np.concatenate([[0], np.cumsum(positive)])[cuts]
    zeros = cuts - ones
    gain = zeros * float(ones[-1]) - ones * float(zeros[-1])  # an exact multiple of P(N < t) + P(P ≥ t) − 1
    best = np.flatnonzero(gain == gain.max())
    cut = cuts[best[len(best) // 2]]
    if cut in (0, len(scores)):
        return -np.inf if cut == 0 else np.inf
    middle = float(scores[cut - 1] / 2 + scores[cut] / 2)
    return middle if np.isfinite(middle) else float(scores[cut])
