"""Tests: is a difference there, is it negligible, and how sure is that over many metrics.

Beside each p-value stands an effect size: how large the difference is, which p does not say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from expunge.errors import DataError
from expunge.evaluation import statistics
from expunge.evaluation.statistics import Floats


@dataclass(frozen=True)
class Contrast:
    """What a test says of two samples.

    Args:
        name: of the test, ``"mcnemar"``.
        difference, interval: of the first sample from the second, with its 95 % interval.
        p: two-sided p-value of no difference.
        effect, effect_name: how large it is in the unit of that effect size, ``"cohen_dz"``.
    """

    name: str
    difference: float
    interval: tuple[float, float] | None
    p: float
    effect: float
    effect_name: str


def paired(a: ArrayLike, b: ArrayLike, clusters: ArrayLike | Tensor | None = None) -> Contrast:
    """The test of two models asked the same questions: McNemar's for right and wrong, else of means.

    Values that are all 0 or 1 get the exact test of McNemar; with ``clusters`` (the data subject of each
    example) and for all other values it is the (clustered) t test of the differences.

    Raises:
        DataError: not two samples of the same length, or fewer than two examples.
    """
    first, second = _pairs(a, b)
    binary = all(bool(((values == 0) | (values == 1)).all()) for values in (first, second))
    return mcnemar(first, second) if binary and clusters is None else paired_t(first, second, clusters)


def mcnemar(a: ArrayLike, b: ArrayLike) -> Contrast:
    """McNemar's exact test of two paired rates.

    Of the examples that only one of the models has right, half should be ``a``'s: the binomial p-value of
    ``n₁₀`` of ``n₁₀ + n₀₁``. Interval: Wald's with one disagreement added in each direction, which holds
    in small samples. Effect: the odds ratio ``n₁₀ / n₀₁``, with ½ added to both where one is 0.

    References: McNemar, Psychometrika 12, 1947; Bonett and Price, J. Educational and Behavioral
    Statistics 37, 2012 (interval).
    """
    from scipy.stats import binomtest

    first, second = _pairs(a, b)
    n, only_a, only_b = len(first), int((first > second).sum()), int((first < second).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    more, less = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = statistics.Z * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    interval = (max(-1.0, more - less - half), min(1.0, more - less + half))
    return Contrast("mcnemar", (only_a - only_b) / n, interval, p, odds_ratio(only_a, only_b), "odds_ratio")


def paired_t(a: ArrayLike, b: ArrayLike, clusters: ArrayLike | Tensor | None = None) -> Contrast:
    """Student's t test of the mean difference, of examples or of whole data subjects.

    ``t = d̄ / SE`` with ``n − 1`` degrees of freedom; with clusters the robust error and degrees of
    freedom of ``statistics``. Effect: Cohen's ``d_z = d̄ / sd(d)``.

    Raises:
        DataError: fewer than two examples or clusters.
    """
    from scipy.special import stdtrit

    first, second = _pairs(a, b)
    differences = first - second
    centre, error = float(differences.mean()), statistics.standard_error(differences, clusters)
    if not math.isfinite(error):
        raise DataError("a clustered test needs at least two subjects, there is one. Leave clusters out.")
    df = len(differences) - 1.0 if clusters is None else statistics.degrees_of_freedom(clusters)
    half = float(stdtrit(df, (1 + statistics.LEVEL) / 2)) * error
    name = "paired_t" if clusters is None else "clustered_t"
    effect = cohen_dz(differences)
    return Contrast(
        name, centre, (centre - half, centre + half), difference(centre, error, df), effect, "cohen_dz"
    )


def wilcoxon(a: ArrayLike, b: ArrayLike) -> Contrast:
    """Wilcoxon's signed-rank test, which outliers do not decide.

    The difference is the median of the paired differences, its interval that of order statistics (the
    binomial one, at least 95 %; None for fewer than six). Effect: the matched-pairs rank-biserial
    correlation ``(W⁺ − W⁻) / (W⁺ + W⁻)``, in [−1, 1].

    References: Wilcoxon, Biometrics Bulletin 1, 1945; Kerby, Comprehensive Psychology 3, 2014 (effect).
    """
    from scipy.stats import binom, rankdata
    from scipy.stats import wilcoxon as signed_rank

    first, second = _pairs(a, b)
    differences = first - second
    n, moved = len(differences), differences[differences != 0]
    below = int(binom.ppf((1 - statistics.LEVEL) / 2, n, 0.5))
    ordered = np.sort(differences)
    interval = (float(ordered[below - 1]), float(ordered[n - below])) if below > 0 else None
    centre = float(np.median(differences))
    if len(moved) == 0:
        return Contrast("wilcoxon", centre, interval, 1.0, 0.0, "rank_biserial")
    ranks = rankdata(np.abs(moved))
    effect = float((ranks * np.sign(moved)).sum() / ranks.sum())
    return Contrast("wilcoxon", centre, interval, float(signed_rank(moved).pvalue), effect, "rank_biserial")


def cohen_dz(differences: Floats) -> float:
    """Cohen's ``d_z``: the mean of paired differences in their standard deviations.

    ``±inf`` for a difference that never varies, 0 for none.
    """
    centre, sd = float(differences.mean()), float(differences.std(ddof=1))
    if np.ptp(differences) == 0:
        return math.copysign(math.inf, centre) if centre else 0.0
    return centre / sd


def odds_ratio(only_a: int, only_b: int) -> float:
    """The odds ratio of paired rates, ``only_a / only_b``; with ½ added to both where one is 0."""
    if only_a and only_b:
        return only_a / only_b
    return (only_a + 0.5) / (only_b + 0.5)


def cliffs_delta(a: Floats, b: Floats) -> float:
    """``P(a > b) − P(a < b) = 2 AUC − 1`` of two unpaired samples, in [−1, 1]."""
    return 2 * statistics.auc(a, b)[0] - 1


def wasserstein(a: Floats, b: Floats) -> float:
    """``∫ |F_a − F_b|``: how far one sample has to be moved to become the other, in its own unit."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(a, b))


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise DataError(
            f"a paired test needs two samples of one length, got {first.shape} and {second.shape}."
        )
    if len(first) < 2:
        raise DataError(f"a paired test needs at least two examples, got {len(first)}.")
    return first, second


def t_upper(statistic: float, df: float) -> float:
    """``P(T > statistic)`` for Student's t with ``df`` degrees of freedom."""
    from scipy.special import stdtr

    return float(stdtr(df, -statistic))


def difference(estimate: float, error: float, df: float) -> float:
    """Two-sided p-value of ``estimate = 0``: Student's t with the estimate's standard error."""
    if error == 0:
        return 1.0 if estimate == 0 else 0.0
    return min(1.0, 2 * t_upper(abs(estimate) / error, df))


def equivalence(estimate: float, error: float, df: float, margin: float) -> float:
    """p-value of ``|true difference| ≥ margin``: two one-sided tests (TOST).

    ``max(P(T > (estimate + margin)/error), P(T > (margin − estimate)/error))``; below the level the
    difference is shown to be inside the margin.

    References: Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987.
    """
    room = margin - abs(estimate)
    if error == 0:
        return 0.0 if room > 0 else 1.0
    return t_upper(room / error, df)


def pooled_df(*parts: tuple[float, float]) -> float:
    """Welch–Satterthwaite degrees of freedom of a sum of variances, each ``(variance, df)``.

    ``(Σ v)² / Σ (v² / df)``.
    """
    total = sum(variance for variance, _ in parts)
    if not math.isfinite(total):
        return 1.0
    below = sum(variance**2 / df for variance, df in parts if df > 0)
    return total**2 / below if below > 0 else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    ``p̃_(i) = max_{j≤i} min(1, (m − j + 1) p_(j))``: rejecting ``p̃ ≤ α`` keeps the chance of any false
    rejection at or below ``α`` whatever the dependence.

    References: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return [float(value) for value in adjusted]
