"""Tests: is a difference there, is it negligible, and how sure is that over many metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


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
