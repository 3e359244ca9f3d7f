"""How numbers are written."""

from __future__ import annotations

import math

import pytest

from expunge.report import wording


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.931, "fraction", "93.1 %"),
        (0.0123, "fraction", "1.23 %"),
        (0.034, "ratio", "0.0340×"),
        (12, "steps", "12 steps"),
        (0.25, "nats", "0.250 nats"),
        (421.7, "seconds", "422 s"),
        (1e7, "nats", "1.00e+07 nats"),
        (-0.00001, "nats", "0.0000 nats"),
    ],
)
def test_quantities(value: float, unit: str, expected: str) -> None:
    assert wording.quantity(value, unit) == expected


@pytest.mark.parametrize(
    ("units", "expected"),
    [(-1.24, "−1.2σ"), (0.0, "0.0σ"), (14.6, "+15σ"), (-math.inf, "−∞σ"), (5e4, "> +999σ"), (None, "")],
)
def test_sigma(units: float | None, expected: str) -> None:
    assert wording.sigma(units) == expected
