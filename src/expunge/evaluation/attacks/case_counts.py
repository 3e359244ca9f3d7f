"""How many cases a rate of an attack rests on, and how many it takes to tell two rates apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from expunge.evaluation import statistics

MOST = 10_000
"""Numbers of cases above which none is named."""


def needed(rate: float, half: float) -> int | None:
    """The cases of which Clopper and Pearson's interval of a rate is nowhere farther than ``half`` from it.

    About the fewest: a rate of whole cases is not exactly this one. None above ``MOST``.
    """
    return _first(lambda n: _reach(rate, n) <= half)


def apart(rate: float, other: float) -> int | None:
    """The cases of each of two models whose intervals no longer touch at these rates; None if never."""
    if not rate > other:
        return None
    return _first(lambda n: statistics.rate(round(rate * n), n)[0] > statistics.rate(round(other * n), n)[1])


def excess(rate: float, n: int, other: float, m: int) -> tuple[float, float]:
    """Interval of ``rate − other``, from the Clopper–Pearson intervals of both (Newcombe, 1998).

    Of a mean over several models' rates ``m`` is the number of cases of one: they share the cases.
    """
    low, high = statistics.rate(round(rate * n), n)
    least, most = statistics.rate(int(other * m + 1e-9), m)[0], statistics.rate(-int(-other * m // 1), m)[1]
    down = float(np.hypot(rate - low, most - other))
    up = float(np.hypot(high - rate, other - least))
    return max(-1.0, rate - other - down), min(1.0, rate - other + up)


def against(rate: float, n: int, other: float, m: int, half: float) -> dict[str, Any]:
    """What a score says of a rate of ``n`` cases beside another's of ``m``."""
    return {
        "excess": {"value": rate - other, "interval": list(excess(rate, n, other, m))},
        "cases_needed": {"precision": half, "within": needed(rate, half), "apart": apart(rate, other)},
    }


def _first(holds: Callable[[int], bool]) -> int | None:
    """The smallest number for which it holds, found by halving and then looked for from a little below."""
    high = 1
    while high <= MOST and not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return next((n for n in range(max(1, high - 20), high + 1) if holds(n)), None) if holds(high) else None


def _reach(rate: float, n: int) -> float:
    hits = round(rate * n)
    low, high = statistics.rate(hits, n)
    return max(hits / n - low, high - hits / n)
