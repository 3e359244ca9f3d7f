import math
import sys

import pytest

from expunge.errors import ConfigError, MissingExtra
from expunge.training.accountant import LARGEST, Accountant, calibrated, group_divergences

pytest.importorskip("opacus")

ORDERS = [1.01, 1.5, 2, 3.3, 8, 20, 63]


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.01, 1000), (2.0, 0.25, 40), (0.7, 1.0, 3)])
def test_one_unit_costs_what_opacus_says(noise, rate, steps):
    from opacus.accountants import RDPAccountant

    theirs = RDPAccountant()
    theirs.history = [(noise, rate, steps)]
    ours = Accountant(noise=noise, rate=rate, steps=steps).epsilon(1e-5)
    assert ours == pytest.approx(theirs.get_epsilon(delta=1e-5), rel=1e-9)


def test_one_sum_of_everybody_is_the_gaussian_mechanism_whose_divergence_is_known():
    """``D_α = α / 2σ²`` at ``q = 1``, and ``ε`` its conversion at the best order."""
    noise, delta = 3.0, 1e-5
    converted = [
        a / (2 * noise**2) - (math.log(delta) + math.log(a)) / (a - 1) + math.log((a - 1) / a)
        for a in (1 + step / 10 for step in range(1, 600))
    ]
    found = Accountant(noise=noise, rate=1.0, steps=1).epsilon(delta)
    assert found == pytest.approx(min(converted), rel=1e-3)
    assert found >= min(converted) - 1e-9


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.01), (2.0, 0.1), (0.6, 0.3), (0.7, 1.0)])
def test_the_integral_of_a_group_of_one_is_opacus_series(noise, rate):
    from opacus.accountants.analysis.rdp import compute_rdp

    theirs = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=ORDERS)
    assert group_divergences(noise, rate, 1, ORDERS) == pytest.approx(list(theirs), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("group", [2, 5, 20])
def test_a_group_that_is_always_drawn_is_one_unit_of_as_many_times_the_norm(group):
    known = [order * group**2 / (2 * 2.0**2) for order in ORDERS]
    assert group_divergences(2.0, 1.0, group, ORDERS) == pytest.approx(known, rel=1e-9)


def test_a_group_costs_more_than_its_units_singly_and_less_than_one_unit_as_large_drawn_as_often():
    """One unit of norm ``k`` drawn with ``1 − (1 − q)^k`` can be turned into the group, so it bounds it."""
    noise, rate, steps = 2.0, 0.05, 50
    of = Accountant(noise=noise, rate=rate, steps=steps)
    for group in (2, 4):
        crude = Accountant(noise=noise / group, rate=1 - (1 - rate) ** group, steps=steps)
        assert group * of.epsilon(1e-5) * 0.9 < of.epsilon(1e-5, group) < crude.epsilon(1e-5)


def test_a_record_guarantee_says_little_of_an_author_with_twenty_records():
    of = Accountant(noise=1.0, rate=0.01, steps=1000)
    assert of.epsilon(1e-5) == pytest.approx(2.10, abs=0.01)
    assert of.epsilon(1e-5, 20) > 70


def test_nothing_is_promised_for_groups_beyond_the_largest():
    assert Accountant(noise=50.0, rate=0.01, steps=1).epsilon(1e-5, LARGEST + 1) == math.inf


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_the_noise_gives_nearly_the_epsilon_that_was_asked_for_and_never_more(epsilon):
    noise = calibrated(epsilon, 1e-5, 0.1, 20)
    found = Accountant(noise=noise, rate=0.1, steps=20).epsilon(1e-5)
    assert 0.98 * epsilon <= found <= epsilon


def test_an_epsilon_out_of_reach_of_the_orders_is_said_to_be():
    with pytest.raises(ConfigError, match="no noise is enough for 0.001 at delta = 1e-05 in 10 steps"):
        calibrated(1e-3, 1e-5, 0.1, 10)


def test_without_opacus_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MissingExtra, match=r"expunge\[private\]"):
        calibrated(3.0, 1e-5, 0.5, 2)
