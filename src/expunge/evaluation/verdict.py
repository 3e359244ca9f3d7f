"""Equivalent, different or inconclusive: what a value says beside those of the retrained models.

Two honest retrains differ. So a model is not asked to agree with their mean but to be like one more
of them, and agreeing is not the same as not having been shown to differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from expunge.evaluation import comparisons

Kind = Literal["equivalent", "different", "inconclusive"]

ALPHA = 0.05
"""Level of every test."""

MARGIN = 2.65
"""The equivalence margin in units of the estimated noise, where the configuration states none.

It stands for 3 units of the true noise. The noise of a few retrained models is itself a guess: with a
factor of 3, a model whose true distance is 3 times the true noise would be called equivalent in 10 % of
all cases for 5 retrained models and in 19 % for 20; with 2.65 it is at most 5 % for any number.
"""

UNLUCKY = 0.05
"""A spread between retrained models so small that it comes by chance this often is allowed for: in the
degrees of freedom of ``different`` (0.01 for two models, whose spread says next to nothing)."""

UNLUCKY_TOST = 0.25
"""The same in those of ``equivalent`` and of the interval, whose level is not divided by Holm's method."""

MOST = 10_000_000
"""Examples (and, divided by 10,000, models) up to which the size that would decide is looked for."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is known of one metric: the value judged and those of the retrained models.

    Args:
        value: of the model judged.
        retrained: of each of the ``K`` retrained models.
        error, df: standard error over examples of ``value − mean(retrained)``, and its degrees of
            freedom.
        n: the number of examples behind it.
        margin: differences below it are negligible.
        relative: whether the margin is ``MARGIN`` times the noise, and so becomes smaller with it.
    """

    value: float
    retrained: Sequence[float]
    error: float
    df: float
    n: int
    margin: float
    relative: bool = False

    @property
    def difference(self) -> float:
        return self.value - sum(self.retrained) / len(self.retrained)

    @property
    def spread(self) -> float:
        """Standard deviation between the retrained models; nan for one."""
        k, mean = len(self.retrained), sum(self.retrained) / len(self.retrained)
        return math.sqrt(sum((r - mean) ** 2 for r in self.retrained) / (k - 1)) if k > 1 else math.nan

    def p_different(self, n: int | None = None, k: int | None = None) -> float:
        """p-value of "this is one more honest retrain", were there ``n`` examples and ``k`` retrains.

        ``t = |D| / √(e² + s² (1 + 1/K))``: ``e`` the error over examples, ``s`` the spread.
        """
        error, df = self._error(n, k, one_more=True)
        return comparisons.difference(self.difference, error, df)

    def p_equivalent(self, n: int | None = None, k: int | None = None) -> float:
        """p-value of "further than the margin from the mean of the retrained models" (TOST).

        The difference has the standard error ``√(e² + s²/K)``.
        """
        error, df = self._error(n, k, one_more=False)
        return comparisons.equivalence(self.difference, error, df, self._margin(n))

    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the difference from the mean of all honest retrains."""
        from scipy.special import stdtrit

        error, df = self._error(None, None, one_more=False)
        half = float(stdtrit(df, 1 - ALPHA / 2)) * error
        return self.difference - half, self.difference + half

    def _error(self, n: int | None, k: int | None, one_more: bool) -> tuple[float, float]:
        """The standard error of the difference and its degrees of freedom.

        Those of Welch and Satterthwaite, but with the spread at the upper end of its one-sided
        interval, ``s² (K−1) / χ²_{K−1, u}``. With ``s`` itself they are far too many just when ``s`` is
        small by chance: three honest retrains, judged over 14 metrics, would be called different up to
        six times as often as the level says.
        """
        from scipy.special import chdtri

        k = k or len(self.retrained)
        sampling, spread = self.error**2 / self._growth(n), self._spread(n)
        between = spread**2 * (1 / k + one_more)
        unlucky = UNLUCKY_TOST if not one_more else UNLUCKY if k > 2 else UNLUCKY / 5
        upper = between * (k - 1) / float(chdtri(k - 1, 1 - unlucky))
        df = comparisons.pooled_df((sampling, self.df * self._growth(n)), (upper, k - 1))
        return math.sqrt(sampling + between), df

    def _growth(self, n: int | None) -> float:
        return n / self.n if n else 1.0

    def _spread(self, n: int | None) -> float:
        """The spread with ``n`` examples: what the error over examples explains of it becomes smaller."""
        explained = min(self.spread**2, self.error**2 / (1 + 1 / len(self.retrained)))
        return math.sqrt(self.spread**2 - explained * (1 - 1 / self._growth(n)))

    def _margin(self, n: int | None) -> float:
        """The margin with ``n`` examples: a relative one follows the larger of spread and sampling error."""
        if not self.relative or n is None:
            return self.margin
        known = self.margin / MARGIN
        sampling = known if known > self.spread * (1 + 1e-9) else 0.0
        return MARGIN * max(self._spread(n), sampling / math.sqrt(self._growth(n)))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one metric says of one model.

    Args:
        kind: ``equivalent``: the difference is shown to be inside the margin; ``different``: the model
            is not one more honest retrain, at 5 % over all metrics together (Holm); ``inconclusive``:
            neither is shown.
        difference, interval: from the mean of the retrained models, with its 95 % interval.
        margin: what counts as negligible.
        p_different, p_holm, p_equivalent: raw, adjusted over the row's metrics, and of the TOST.
        needs: of an inconclusive one, what would decide it: ``n ≥ 1,240``, ``≥ 6 retrained models``.
    """

    kind: Kind
    difference: float
    interval: tuple[float, float] | None
    margin: float
    p_different: float | None
    p_holm: float | None
    p_equivalent: float | None
    needs: str = ""

    @property
    def words(self) -> str:
        """``inconclusive (needs n ≥ 1,240)``."""
        return f"{self.kind} (needs {self.needs})" if self.needs else self.kind

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "difference": self.difference,
            "interval": list(self.interval) if self.interval else None,
            "margin": self.margin,
            "p_different": self.p_different,
            "p_holm": self.p_holm,
            "p_equivalent": self.p_equivalent,
            "needs": self.needs,
        }


def judge(compared: Mapping[str, Comparison]) -> dict[str, Verdict]:
    """The verdicts of one model on several metrics.

    Being different is tested over all metrics together by Holm's method, since with many metrics one
    is off by chance; being equivalent is a claim about a single metric and tested at 5 % on each. A
    claim of equivalence on *all* metrics of a row needs no adjustment: each has to be shown.
    """
    several = {id_: item for id_, item in compared.items() if len(item.retrained) > 1}
    raw = {id_: item.p_different() for id_, item in several.items()}
    adjusted = dict(zip(raw, comparisons.holm(list(raw.values())), strict=True))
    found = {}
    for id_, item in compared.items():
        if id_ not in several:
            found[id_] = _alone(item)
            continue
        verdict = Verdict(
            kind="inconclusive",
            difference=item.difference,
            interval=item.interval(),
            margin=item.margin,
            p_different=raw[id_],
            p_holm=adjusted[id_],
            p_equivalent=item.p_equivalent(),
        )
        found[id_] = _decide(verdict, item, len(raw))
    return found


def _alone(item: Comparison) -> Verdict:
    """With one retrained model there is no noise to judge by."""
    return Verdict(
        kind="inconclusive",
        difference=item.difference,
        interval=None,
        margin=item.margin,
        p_different=None,
        p_holm=None,
        p_equivalent=None,
        needs="≥ 3 retrained models",
    )


def _decide(verdict: Verdict, item: Comparison, metrics: int) -> Verdict:
    assert verdict.p_equivalent is not None
    assert verdict.p_holm is not None
    if verdict.p_equivalent < ALPHA:
        return replace(verdict, kind="equivalent")
    if verdict.p_holm < ALPHA:
        return replace(verdict, kind="different")
    return replace(verdict, needs=_needed(item, metrics))


def _needed(item: Comparison, metrics: int) -> str:
    """The examples, or else the retrained models, with which the same difference would decide.

    Numbers of examples have two significant digits, rounded up.
    """

    def decided(n: int | None, k: int | None) -> bool:
        return item.p_equivalent(n, k) < ALPHA or metrics * item.p_different(n, k) < ALPHA

    few = len(item.retrained)
    n = _smallest(lambda m: decided(m, None), item.n, MOST)
    if n is not None:
        return f"n ≥ {_rounded(n):,}"
    k = _smallest(lambda m: decided(None, m), few, MOST // 10_000)
    if k is not None:
        return f"≥ {k:,} retrained models"
    both = _smallest(lambda m: decided(MOST, m), few, MOST // 10_000)
    return f"≥ {both:,} retrained models and more examples" if both else "more than can be said"


def _rounded(n: int) -> int:
    """Up to two significant digits: 1,234 becomes 1,300."""
    unit = int(10 ** max(0, len(str(n)) - 2))
    return -(-n // unit) * unit


def _smallest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number in ``(low, high]`` from which on it holds, by bisection; None for none."""
    if not holds(high):
        return None
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
