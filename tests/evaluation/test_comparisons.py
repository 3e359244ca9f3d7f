import math

import numpy as np
import pytest
from scipy import stats

from expunge.errors import DataError
from expunge.evaluation import comparisons, statistics


def test_mcnemar_by_hand() -> None:
    # 20 questions: 8 only the first has right, 2 only the second, 10 both
    a = np.array([1] * 8 + [0] * 2 + [1] * 10)
    b = np.array([0] * 8 + [1] * 2 + [1] * 10)
    found = comparisons.paired(a, b)
    assert (found.name, found.effect_name, found.effect) == ("mcnemar", "odds_ratio", 4.0)
    assert found.difference == pytest.approx(0.3)
    assert found.p == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    more, less = 9 / 22, 3 / 22
    half = 1.959964 * math.sqrt((more + less - (more - less) ** 2) / 22)
    assert found.interval == pytest.approx((more - less - half, more - less + half))


def test_models_that_always_agree_are_not_different() -> None:
    found = comparisons.paired([1, 0, 1, 1], [1, 0, 1, 1])
    assert (found.p, found.difference, found.effect) == (1.0, 0.0, 1.0)
    low, high = found.interval
    assert low < -0.2 < 0.2 < high  # four agreements do not show agreement
    assert comparisons.odds_ratio(4, 0) == 9.0


def test_means_get_the_t_test_of_scipy_and_cohens_d() -> None:
    draws = np.random.default_rng(0)
    a, b = draws.normal(0.3, size=25), draws.normal(size=25)
    found, theirs = comparisons.paired(a, b), stats.ttest_rel(a, b)
    assert found.name == "paired_t"
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.effect == pytest.approx((a - b).mean() / (a - b).std(ddof=1))


def test_subjects_are_the_unit_where_there_are_some() -> None:
    draws = np.random.default_rng(0)
    subject = draws.normal(0.5, size=8)
    theirs = stats.ttest_1samp(subject, 0)
    found = comparisons.paired(np.repeat(subject, 10), np.zeros(80), clusters=np.repeat(np.arange(8), 10))
    assert found.name == "clustered_t"
    assert found.p == pytest.approx(theirs.pvalue)
    naive = comparisons.paired(np.repeat(subject, 10), np.zeros(80))
    assert naive.p < found.p / 10
    right = np.repeat([1, 1, 0, 1], 3)
    assert comparisons.paired(right, 1 - right, clusters=np.repeat(range(4), 3)).name == "clustered_t"


def test_wilcoxon_is_that_of_scipy_with_its_effect() -> None:
    a, b = np.array([5.0, 4, 8, 9, 3, 7, 900]), np.array([4.0, 6, 5, 5, 3, 2, 1])
    found = comparisons.wilcoxon(a, b)
    moved = (a - b)[a != b]
    assert found.p == pytest.approx(stats.wilcoxon(moved).pvalue)
    assert found.difference == 3.0
    assert found.effect == pytest.approx((1 + 3 + 4 + 5 + 6 - 2) / 21)
    assert found.interval == (-2.0, 899.0)
    assert comparisons.wilcoxon(a, a).p == 1.0


def test_effect_sizes_by_hand() -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])
    assert comparisons.cliffs_delta(a, b) == pytest.approx((4 - 1) / 6)
    assert comparisons.wasserstein(np.array([0.0, 1.0]), np.array([3.0, 4.0])) == pytest.approx(3.0)
    assert comparisons.cohen_dz(np.array([2.0, 2.0])) == math.inf
    assert comparisons.cohen_dz(np.zeros(3)) == 0.0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([1.0, 2.0], [1.0], "one length"), ([1.0], [2.0], "at least two examples")],
)
def test_bad_pairs_are_refused(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        comparisons.paired(a, b)
    with pytest.raises(DataError, match="two subjects"):
        comparisons.paired([1.0, 2.0], [1.0, 1.0], clusters=[0, 0])


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, never falling
    assert comparisons.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert comparisons.holm([0.5, 0.9]) == [1.0, 1.0]
    assert comparisons.holm([]) == []


@pytest.mark.parametrize("shift", [0.0, 0.4, 3.0])
def test_tost_is_two_one_sided_tests_of_scipy(shift: float) -> None:
    values = np.random.default_rng(0).normal(shift, size=30)
    error = statistics.standard_error(values)
    above = stats.ttest_1samp(values, -1.0, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 1.0, alternative="less").pvalue
    assert comparisons.equivalence(values.mean(), error, 29, 1.0) == pytest.approx(max(above, below))


def test_tests_without_any_error() -> None:
    assert comparisons.difference(0.0, 0.0, 5) == 1.0
    assert comparisons.difference(0.1, 0.0, 5) == 0.0
    assert comparisons.equivalence(0.1, 0.0, 5, 0.2) == 0.0
    assert comparisons.equivalence(0.2, 0.0, 5, 0.2) == 1.0


def test_pooled_degrees_of_freedom_are_welchs() -> None:
    draws = np.random.default_rng(0)
    a, b = draws.normal(size=8), draws.normal(0, 3, size=20)
    df = comparisons.pooled_df((a.var(ddof=1) / 8, 7), (b.var(ddof=1) / 20, 19))
    assert df == pytest.approx(stats.ttest_ind(a, b, equal_var=False).df)
