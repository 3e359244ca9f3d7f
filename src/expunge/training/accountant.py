"""What a training with clipped gradients and noise gives away, as ``(ε, δ)``: the accountant of opacus."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge import seeding
from expunge.errors import ConfigError, MissingExtra

LARGEST = 512
"""Units of the largest group whose ``ε`` is computed; for larger ones it is infinite."""

MORE_ORDERS = (96, 160, 256)
"""Beside opacus' own, which end at 63 and so at an ``ε`` of about ``ln(1/δ) / 80``."""

REACH = 4096
"""Orders are left out for which the integral of a group goes further than so many standard deviations."""


@dataclass(frozen=True, kw_only=True)
class Accountant:
    """``T`` sums of vectors of norm ≤ 1, one a unit, each released with Gaussian noise.

    In each step every unit is there with probability ``q``, independently of all else. Two data sets
    are neighbours where one is the other without one unit.

    Args:
        noise: ``σ``, the standard deviation of the noise of every coordinate.
        rate: ``q``.
        steps: ``T``.
    """

    noise: float
    rate: float
    steps: int

    def epsilon(self, delta: float, group: int = 1) -> float:
        """``ε`` at this ``δ`` for data sets that differ by ``group`` units; infinite beyond ``LARGEST``.

        For one unit what opacus computes by Rényi differential privacy (Mironov et al., 2019). For ``k``
        the same with the pair of distributions that is worst for ``k`` units, ``N(0, σ²)`` and
        ``Σ_j Binomial(j; k, q) N(j, σ²)`` (Ganesh, 2024, arXiv:2401.10294), and the same conversion.

        Raises:
            MissingExtra: opacus is not installed.
        """
        return _epsilon(self, delta, group)


@functools.cache
def calibrated(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """A noise ``σ`` that gives one unit at most this ``ε``, and at least 99 % of it.

    Raises:
        MissingExtra: opacus is not installed.
        ConfigError: no noise is enough.
    """
    with _opacus() as opacus:
        try:
            found = opacus.accountants.utils.get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                epsilon_tolerance=0.01 * epsilon,
                alphas=_orders(opacus),
            )
        except ValueError:
            raise ConfigError(
                f"no noise is enough for {epsilon} at delta = {delta:g} in {steps} steps. Raise it.",
                "epsilon",
            ) from None
    return float(found)


def group_divergences(noise: float, rate: float, group: int, orders: Sequence[float]) -> list[float]:
    """``max(D_α(P ‖ Q), D_α(Q ‖ P))`` for each order, with ``P = Σ_j Binomial(j; k, q) N(j, σ²)``.

    ``Q = N(0, σ²)``. The integral is a sum over a grid of ``σ/8``, which for Gaussians is as exact as
    double precision.
    """
    from scipy.special import logsumexp
    from scipy.stats import binom, norm

    reach = max(orders) * group + 12 * noise
    points = np.arange(-reach, reach, noise / 8)
    shifts = np.arange(group + 1)
    weights = binom.logpmf(shifts, group, rate)
    ratios = np.concatenate(
        [
            logsumexp(weights + shifts * (2 * part[:, None] - shifts) / (2 * noise**2), axis=1)
            for part in np.array_split(points, len(points) // 1024 + 1)
        ]
    )  # log dP/dQ
    measure = norm.logpdf(points, scale=noise) + np.log(noise / 8)
    return [
        float(max(logsumexp(power * ratios + measure) for power in (order, 1 - order)) / (order - 1))
        for order in orders
    ]


@functools.cache
def _epsilon(of: Accountant, delta: float, group: int) -> float:
    if group > LARGEST:
        return float("inf")
    with _opacus() as opacus:
        if group == 1:
            accountant = opacus.accountants.RDPAccountant()
            accountant.history = [(of.noise, of.rate, of.steps)]
            return max(0.0, float(accountant.get_epsilon(delta=delta, alphas=_orders(opacus))))
        near = [1 + step / 100 for step in range(1, 10)]
        known = [*near, *_orders(opacus)]
        orders = [order for order in known if order * group <= REACH * of.noise] or near[:1]
        spent = [of.steps * value for value in group_divergences(of.noise, of.rate, group, orders)]
        found, _ = opacus.accountants.analysis.rdp.get_privacy_spent(orders=orders, rdp=spent, delta=delta)
    return max(0.0, float(found))


def _orders(opacus: Any) -> list[float]:
    return [*opacus.accountants.RDPAccountant.DEFAULT_ALPHAS, *MORE_ORDERS]


@contextmanager
def _opacus() -> Iterator[Any]:
    """The package, its warnings about orders at the edge silenced: they make ``ε`` larger, not wrong."""
    with seeding.seeded(0), warnings.catch_warnings():  # imported late, it must not draw
        warnings.simplefilter("ignore")
        try:
            import opacus
            import opacus.accountants.analysis.rdp
            import opacus.accountants.utils
        except ImportError:
            raise MissingExtra("differentially private training", "private") from None
        yield opacus
