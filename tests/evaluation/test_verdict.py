import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from expunge.evaluation import verdict
from expunge.evaluation.verdict import Comparison, judge

PLAIN = Comparison(value=0.5, retrained=(0.50, 0.51, 0.49), error=0.005, df=999, n=1000, margin=0.1)


def test_a_difference_inside_the_margin_is_equivalent_and_a_large_one_different() -> None:
    near, far = judge({"a": PLAIN})["a"], judge({"a": replace(PLAIN, value=0.9)})["a"]
    assert (near.kind, near.needs, near.difference) == ("equivalent", "", pytest.approx(0.0))
    assert far.kind == "different"
    assert far.interval[0] > 0.1
    assert far.words == "different"
    assert json.loads(json.dumps(far.to_json()))["p_holm"] == far.p_holm


def test_agreeing_by_lack_of_evidence_is_inconclusive() -> None:
    found = judge({"a": replace(PLAIN, error=0.2, n=20, df=19)})["a"]
    assert found.kind == "inconclusive"
    assert found.words.startswith("inconclusive (needs n ≥ ")
    assert found.p_equivalent > 0.05 < found.p_different


def test_p_values_by_hand() -> None:
    item = replace(PLAIN, value=0.55)
    s = 0.01
    sampling, between = 0.005**2, s**2 * 4 / 3
    upper = between * 2 / stats.chi2.ppf(0.05, 2)
    df = (sampling + upper) ** 2 / (sampling**2 / 999 + upper**2 / 2)
    statistic = 0.05 / math.sqrt(sampling + between)
    assert item.p_different() == pytest.approx(2 * stats.t.sf(statistic, df))
    between = s**2 / 3
    upper = between * 2 / stats.chi2.ppf(0.25, 2)
    df = (sampling + upper) ** 2 / (sampling**2 / 999 + upper**2 / 2)
    error = math.sqrt(sampling + between)
    assert item.p_equivalent() == pytest.approx(stats.t.sf((0.1 - 0.05) / error, df))
    assert item.interval() == pytest.approx(stats.t.interval(0.95, df, loc=0.05, scale=error))


def test_without_error_over_examples_one_more_retrain_is_an_exact_t_test() -> None:
    values = (0.2, 0.5, 0.3, 0.6)
    item = Comparison(value=1.0, retrained=values, error=0.0, df=1, n=1, margin=0.1)
    statistic = (1.0 - np.mean(values)) / (np.std(values, ddof=1) * math.sqrt(1 + 1 / 4))
    assert item.p_different() == pytest.approx(2 * stats.t.sf(statistic, 3))


def test_a_spread_small_by_chance_is_not_taken_at_its_word() -> None:
    """Plain Welch would take 1,000 degrees of freedom here and find p = 0.007."""
    lucky = Comparison(value=0.53, retrained=(0.5, 0.5004, 0.4996), error=0.011, df=999, n=1000, margin=0.1)
    same = replace(lucky, retrained=(0.5, 0.507, 0.493))
    assert lucky.p_different() < same.p_different()
    welch = 2 * stats.t.sf(same.difference / math.hypot(0.011, 0.007 * math.sqrt(4 / 3)), 12)
    assert same.p_different() > 2 * welch


def test_holm_makes_a_single_odd_metric_of_many_inconclusive() -> None:
    odd = replace(PLAIN, value=0.56, margin=0.01)
    alone = judge({"a": odd})["a"]
    assert alone.kind == "different"
    rest = {f"m{i}": replace(PLAIN, margin=0.0) for i in range(20)}
    among = judge({"a": odd, **rest})["a"]
    assert among.kind == "inconclusive"
    assert among.p_different == alone.p_different
    assert among.p_holm == pytest.approx(21 * among.p_different)


def test_one_retrained_model_decides_nothing() -> None:
    found = judge({"a": replace(PLAIN, retrained=(0.5,)), "b": PLAIN})
    assert found["a"].words == "inconclusive (needs ≥ 3 retrained models)"
    assert found["a"].p_different is None
    assert found["b"].kind == "equivalent"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("relative", [False, True])
def test_what_is_needed_decides_when_it_is_there(seed: int, relative: bool) -> None:
    """The same difference with that many examples, noise shrunk as examples make it, is decided."""
    draws = np.random.default_rng(seed)
    n, k = 100, 3

    def item(n: int, retrained: np.ndarray) -> Comparison:
        noise = max(float(retrained.std(ddof=1)), 1 / n**0.5)
        return Comparison(
            value=float(retrained.mean()) + 0.28,
            retrained=list(retrained),
            error=math.sqrt((1 + 1 / k) / n),
            df=n - 1,
            n=n,
            margin=verdict.MARGIN * noise if relative else 0.35,
            relative=relative,
        )

    retrained = draws.normal(size=k) / n**0.5
    found = judge({"a": item(n, retrained)})["a"]
    if not found.needs.startswith("n ≥"):
        assert found.kind != "inconclusive" or "retrained models" in found.needs
        return
    needed = int(found.needs.split()[-1].replace(",", ""))
    assert n < needed
    spread = retrained.std(ddof=1)
    explained = min(spread**2, 1 / n)
    shrunk = math.sqrt((spread**2 - explained * (1 - n / needed)) / spread**2)
    more = item(needed, retrained * shrunk)
    assert judge({"a": more})["a"].kind != "inconclusive"
    fewer = item(int(0.8 * needed), retrained * shrunk)
    assert int(0.8 * needed) <= n or judge({"a": fewer})["a"].kind == "inconclusive"


def test_needs_are_round_numbers() -> None:
    assert [verdict._rounded(n) for n in (7, 42, 101, 1234, 1300, 98_765)] == [7, 42, 110, 1300, 1300, 99_000]


def test_a_margin_of_nothing_between_equal_models_needs_more_than_can_be_said() -> None:
    item = Comparison(value=0.5, retrained=(0.4, 0.6), error=0.0, df=1, n=10, margin=0.0)
    assert judge({"a": item})["a"].needs == "more than can be said"
