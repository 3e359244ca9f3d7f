"""How numbers are written: digits, units, intervals, noise units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

SYMBOLS = {
    "fraction": "%",
    "nats": "nats",
    "steps": "steps",
    "seconds": "s",
    "ratio": "×",
    "MiB": "MiB",
    "index": "",
}

# For each unit: (at least this large, decimals), largest first.
_DECIMALS: dict[str, tuple[tuple[float, int], ...]] = {
    "fraction": ((10, 1), (0, 2)),
    "nats": ((100, 1), (10, 2), (0.1, 3), (0, 4)),
    "seconds": ((100, 0), (10, 1), (0, 2)),
    "ratio": ((10, 1), (0.1, 3), (0, 4)),
    "MiB": ((10, 0), (0, 1)),
}


def decimals(values: Iterable[float], unit: str) -> int:
    """As many digits after the point as the largest value needs, so that a column lines up."""
    shown = [abs(value) * (100 if unit == "fraction" else 1) for value in values if math.isfinite(value)]
    if unit == "steps":
        return 0 if all(value == round(value) for value in shown) else 1
    largest = max(shown, default=0.0)
    steps = _DECIMALS.get(unit, ((100, 1), (0, 3)))
    return next((digits for bound, digits in steps if largest >= bound), steps[-1][1])


def number(value: float, unit: str, digits: int, *, sign: bool = False) -> str:
    """``93.1`` for the fraction 0.931; without its symbol, which belongs to the heading."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        text = "∞" if value > 0 else "−∞"
    else:
        shown = value * 100 if unit == "fraction" else value
        text = f"{shown:.{digits}f}" if abs(shown) < 1e5 else f"{shown:.2e}"
        if not float(text):
            return text.lstrip("-")
        text = text.replace("-", "−")
    return f"+{text}" if sign and not text.startswith("−") else text


def quantity(value: float, unit: str, digits: int | None = None) -> str:
    """A number in a sentence, with its symbol: ``93.1 %``, ``0.03×``."""
    text = number(value, unit, decimals([value], unit) if digits is None else digits)
    symbol = SYMBOLS.get(unit, unit)
    return f"{text}{symbol}" if symbol in ("×", "") else f"{text} {symbol}"


def headed(heading: str, unit: str) -> str:
    """A heading with the symbol of its values: ``test accuracy (%)``."""
    symbol = SYMBOLS.get(unit, unit)
    return f"{heading} ({symbol})" if symbol else heading


def interval(bounds: tuple[float, float] | None, unit: str, digits: int) -> str:
    return f"[{number(bounds[0], unit, digits)}, {number(bounds[1], unit, digits)}]" if bounds else ""


def sigma(units: float | None) -> str:
    """Noise units with their sign: ``−1.2σ``."""
    if units is None:
        return ""
    if math.isinf(units):
        return "+∞σ" if units > 0 else "−∞σ"
    if abs(units) > 999:
        return "> +999σ" if units > 0 else "< −999σ"
    digits = 1 if abs(units) < 9.95 else 0
    return number(units, "σ", digits, sign=True) + "σ"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def listing(names: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else "".join(names)


def counted(n: int, noun: str, plural: str = "") -> str:
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
