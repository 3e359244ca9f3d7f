import numpy as np
import pytest
from scipy import stats

from expunge.evaluation import statistics


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (1, 1), (499, 500)])
def test_rate_is_the_exact_interval_of_scipy(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert statistics.rate(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("n", [200, 5000])
def test_mean_covers_the_truth_about_as_often_as_it_says(n: int) -> None:
    generator = np.random.default_rng(0)
    intervals = [statistics.mean(generator.exponential(size=n), seed=i % 4) for i in range(300)]
    covered = np.mean([low <= 1 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.98


def test_blocks_give_the_same_width_as_single_values() -> None:
    values = np.random.default_rng(1).normal(size=20_000)
    low, high = statistics.mean(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / len(values) ** 0.5, rel=0.1)
    assert low < values.mean() < high


def test_bootstrap_is_seeded_and_a_single_value_has_no_interval() -> None:
    values = np.arange(50.0)
    assert statistics.mean(values, seed=3) == statistics.mean(values, seed=3)
    assert statistics.mean(values, seed=3) != statistics.mean(values, seed=4)
    assert statistics.mean(values[:1]) is None
    assert statistics.mean_of_few(values[:1]) is None


def test_few_repetitions_get_students_t() -> None:
    values = np.array([3.0, 5.0, 10.0])
    expected = stats.t.interval(0.95, 2, loc=6.0, scale=values.std(ddof=1) / 3**0.5)
    assert statistics.mean_of_few(values) == pytest.approx(expected)
