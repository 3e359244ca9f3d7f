import time

import numpy as np
import pytest
from scipy import stats

from expunge.errors import DataError
from expunge.evaluation import statistics


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (1, 1), (499, 500)])
def test_rates_are_the_intervals_of_scipy(k: int, n: int) -> None:
    for method, ours in (("exact", statistics.rate), ("wilson", statistics.wilson)):
        expected = stats.binomtest(k, n).proportion_ci(0.95, method=method)
        assert ours(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_rate_of_nothing_has_no_interval() -> None:
    with pytest.raises(DataError, match="no examples"):
        statistics.wilson(0, 0)


def test_mean_is_about_the_bca_interval_of_scipy_and_skewed_as_the_data() -> None:
    values = np.random.default_rng(0).exponential(size=150)
    low, high = statistics.mean(values, resamples=5000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=5000, method="BCa", rng=1).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert high - values.mean() > 1.02 * (values.mean() - low)


def test_few_values_get_a_wider_interval_than_the_plain_bootstrap() -> None:
    values = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    low, high = statistics.mean(values)
    plain = statistics.percentile(statistics.resampled_means(values, 0))
    assert high - low > 1.15 * (plain[1] - plain[0])


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert statistics.mean(np.full(30, 0.1)) == pytest.approx((0.1, 0.1))


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


def test_the_cost_of_a_mean_does_not_grow_with_the_sample() -> None:
    def seconds(values: np.ndarray) -> float:
        statistics.mean(values)
        times = []
        for _ in range(15):
            start = time.process_time()
            statistics.mean(values)
            times.append(time.process_time() - start)
        return min(times)

    values = np.random.default_rng(0).normal(size=50_000)
    assert seconds(values) < 10 * seconds(values[:1000])  # 1.7 times on a quiet machine, 50 without blocks


def test_few_repetitions_get_students_t() -> None:
    values = np.array([3.0, 5.0, 10.0])
    expected = stats.t.interval(0.95, 2, loc=6.0, scale=values.std(ddof=1) / 3**0.5)
    assert statistics.mean_of_few(values) == pytest.approx(expected)


def test_subjects_of_equal_size_are_a_t_interval_of_their_means() -> None:
    values = np.array([1.0, 3.0, 2.0, 6.0, 5.0, 9.0])
    subjects = np.array([7, 7, 2, 2, 5, 5])
    expected = statistics.mean_of_few(np.array([2.0, 4.0, 7.0]))
    assert statistics.mean(values, clusters=subjects) == pytest.approx(expected)
    assert statistics.degrees_of_freedom(subjects) == pytest.approx(2.0)
    assert statistics.mean(values, clusters=np.zeros(6)) is None


def test_repeating_every_example_does_not_narrow_a_clustered_interval() -> None:
    values, subjects = np.random.default_rng(0).normal(size=12), np.arange(12)
    once = statistics.mean(values, clusters=subjects)
    assert statistics.mean(np.repeat(values, 20), clusters=np.repeat(subjects, 20)) == pytest.approx(once)
    low, high = statistics.mean(np.repeat(values, 20))
    assert high - low < 0.3 * (once[1] - once[0])


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [1, 2, 3, 4, 5], [1, 1, 20]])
def test_degrees_of_freedom_are_those_of_the_whole_matrix(sizes: list[int]) -> None:
    w = np.array(sizes) / sum(sizes)
    cov = np.diag(w**2) - np.outer(w**2, w) - np.outer(w, w**2) + np.outer(w, w) * (w**2).sum()
    m = cov / np.sqrt(np.outer(1 - w, 1 - w))
    expected = np.trace(m) ** 2 / (m @ m).trace()
    assert statistics.degrees_of_freedom(np.repeat(np.arange(len(w)), sizes)) == pytest.approx(expected)


def test_standard_error_of_unequal_subjects_by_hand() -> None:
    # subjects {0, 0, 0} and {4}: mean 1, sums of deviations -3 and 3, shares 3/4 and 1/4
    values, subjects = np.array([0.0, 0.0, 0.0, 4.0]), np.array([1, 1, 1, 2])
    assert statistics.standard_error(values, subjects) == pytest.approx((9 * 4 + 9 * 4 / 3) ** 0.5 / 4)
    plain = values.std(ddof=1) / 2
    assert statistics.standard_error(values) == pytest.approx(plain)
    assert statistics.standard_error(values, np.ones(4)) == float("inf")


def test_auc_by_hand_and_with_ties() -> None:
    value, interval = statistics.auc(np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0]))
    assert value == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 1) / 6)
    assert interval is not None
    assert interval[0] < value < interval[1]


def test_delong_variance_is_that_of_all_pairs() -> None:
    draws = np.random.default_rng(0)
    a, b = draws.integers(0, 9, 40).astype(float) + 1, draws.integers(0, 9, 30).astype(float)
    pairs = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    first, second = pairs.mean(1).var(ddof=1) / 40, pairs.mean(0).var(ddof=1) / 30
    error = np.sqrt(first + second)
    quantile = stats.t.ppf(0.975, error**4 / (first**2 / 39 + second**2 / 29))
    value, (low, high) = statistics.auc(a, b)
    logit = np.log([low / (1 - low), high / (1 - high)])
    assert value == pytest.approx(pairs.mean())
    assert logit[1] - logit[0] == pytest.approx(2 * quantile * error / (value * (1 - value)))


@pytest.mark.parametrize(("n", "m"), [(5, 5), (50, 50), (10, 1000)])
def test_perfect_separation_and_constant_scores_have_an_interval(n: int, m: int) -> None:
    value, (low, high) = statistics.auc(np.ones(n), np.zeros(m))
    assert (value, high) == (1.0, 1.0)
    # Newcombe: (1 - low)^2 = z^2 low (1 - low) (1 + few (1 - low)/(2 - low) + few low/(1 + low)) / nm
    few = (n + m) / 2 - 1
    spread = 1 + few * (1 - low) / (2 - low) + few * low / (1 + low)
    assert (1 - low) ** 2 == pytest.approx(1.959964**2 * low * (1 - low) * spread / (n * m), rel=1e-5)
    assert 0.5 < low < 1 - 1 / max(n, m)
    mirrored = statistics.auc(np.zeros(m), np.ones(n))
    assert mirrored[0] == 0.0
    assert mirrored[1] == pytest.approx((0.0, 1 - low))
    value, (low, high) = statistics.auc(np.ones(n), np.ones(m))
    assert value == 0.5
    assert low == pytest.approx(1 - high)
    assert 0 < low < 0.5


def test_one_example_has_no_auc_interval() -> None:
    assert statistics.auc(np.array([1.0]), np.array([0.0, 2.0])) == (0.5, None)


def test_balanced_accuracy_does_not_choose_its_threshold_on_the_examples_it_judges() -> None:
    draws = np.random.default_rng(0)
    found, optimistic = [], []
    for _ in range(60):
        a, b = draws.normal(size=20), draws.normal(size=20)
        found.append(statistics.balanced_accuracy(a, b)[0])
        cuts = np.append(np.concatenate([a, b]), np.inf)
        optimistic.append(max(((a >= t).mean() + (b < t).mean()) / 2 for t in cuts))
    assert np.mean(optimistic) > 0.57  # the maximum finds something in nothing
    assert np.mean(found) == pytest.approx(0.5, abs=4 * np.std(found) / 60**0.5)


def test_balanced_accuracy_of_known_cases() -> None:
    value, (low, high) = statistics.balanced_accuracy(np.arange(10.0, 50), np.arange(-40.0, 0))
    assert value == 1.0
    half = (1 - statistics.wilson(40, 40)[0]) / 2**0.5
    assert (low, high) == pytest.approx((1 - half, 1.0))
    assert statistics.balanced_accuracy(np.zeros(9), np.zeros(7))[0] == 0.5  # all alike: nothing to cut
    assert statistics.balanced_accuracy(np.zeros(40), np.ones(40))[0] == 0.5  # members score high, not low
    infinite = np.concatenate([np.full(50, np.inf), np.zeros(50)])
    once = statistics.balanced_accuracy(infinite, np.zeros(100))
    assert once[0] == 0.75
    assert once == statistics.balanced_accuracy(infinite, np.zeros(100))
    with pytest.raises(DataError, match="there are 1 and 5"):
        statistics.balanced_accuracy(np.ones(1), np.zeros(5))


def test_a_true_positive_rate_is_at_no_more_than_the_rate_asked_for() -> None:
    """Not at the nearest rate there is, which may be a higher one."""
    negatives = np.arange(10.0)
    positives = np.array([7.5, 8.0, 8.5, 9.5])
    # 0.19 of ten negatives allows one, the 9: the threshold is 8, which two of four exceed; the nearest
    # rate, two of ten, would lower it to 7 and find all four
    assert statistics.tpr_at(positives, negatives, 0.19)[0] == 0.5
    assert statistics.tpr_at(positives, negatives, 0.2)[0] == 1.0
    assert statistics.tpr_at(positives, negatives, 0.19)[1] == pytest.approx(statistics.rate(2, 4))
    # equal scores are never split: two of four are allowed, the threshold lets none of the three 1s pass
    assert statistics.tpr_at(np.array([1.0, 2.0]), np.array([0.0, 1.0, 1.0, 1.0]), 0.5)[0] == 0.5
    with pytest.raises(DataError, match="needs at least 1000 non-members; there are 999"):
        statistics.tpr_at(positives, np.arange(999.0), 0.001)
    assert statistics.tpr_at(positives, np.arange(1000.0), 0.001)[0] == 0.0
