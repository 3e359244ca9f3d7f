"""TOFU's numbers: worked by hand, their known defects, and those of the published logs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from expunge.errors import DataError
from expunge.evaluation import comparisons
from expunge.evaluation.tofu import (
    Ability,
    Likelihood,
    closeness,
    critical,
    extent_of_knowledge,
    forget_quality,
    log_truth_ratio,
    model_utility,
    option_probability,
    paired,
    probability,
    truth_ratio,
    truthfulness,
)

# two tokens of ½ each; wrong answers of one token ¼ and of three tokens ½ each
ANSWER = Likelihood(np.log([0.25]), np.array([2]))
WRONG = Likelihood(np.log([[0.25, 0.125]]), np.array([[1, 3]]))


def test_by_hand() -> None:
    assert probability(ANSWER)[0] == pytest.approx(0.5)  # the mean of tokens, not the sum: ¼
    assert option_probability(ANSWER, WRONG)[0] == pytest.approx(0.5 / 1.25)
    assert truth_ratio(ANSWER, WRONG, "arithmetic")[0] == pytest.approx(0.375 / 0.5)
    assert truth_ratio(ANSWER, WRONG, "geometric")[0] == pytest.approx(math.sqrt(0.125) / 0.5)
    assert extent_of_knowledge(ANSWER, WRONG)[0] == pytest.approx(0.5 / (0.5 + math.sqrt(0.125)))
    assert log_truth_ratio(ANSWER, WRONG)[0] == pytest.approx(math.log(math.sqrt(0.5)))
    ratios = np.array([0.0, 0.5, 1.0, 4.0])
    assert closeness(ratios).tolist() == [0.0, 0.5, 1.0, 0.25]
    assert truthfulness(ratios).tolist() == [1.0, 0.5, 0.0, 0.0]


def test_a_collapsed_model_under_both_definitions() -> None:
    """All answers have e⁻¹⁰⁰ a token, so none is likelier; with 1e-10 added the truth seems to be."""
    answer, wrong = (
        Likelihood(np.array([-200.0]), np.array([2])),
        Likelihood(np.full((1, 3), -100.0), np.ones((1, 3))),
    )
    assert truth_ratio(answer, wrong)[0] == 1.0
    assert extent_of_knowledge(answer, wrong)[0] == 0.5
    assert option_probability(answer, wrong)[0] == pytest.approx(0.25)
    published = truth_ratio(answer, wrong, definition="conformance")
    assert published[0] == pytest.approx(math.exp(-100) / 1e-10)
    assert closeness(published, "conformance")[0] < 1e-30
    assert extent_of_knowledge(answer, wrong, "conformance")[0] < 1e-30
    assert option_probability(answer, wrong, "conformance")[0] < 1e-30
    arithmetic = truth_ratio(answer, wrong, "arithmetic", "conformance")
    assert arithmetic[0] == pytest.approx(1.0)  # nothing is added there


def test_definitions_agree_on_a_healthy_model() -> None:
    for function in (truth_ratio, option_probability, extent_of_knowledge):
        assert function(ANSWER, WRONG)[0] == pytest.approx(
            function(ANSWER, WRONG, definition="conformance")[0], rel=1e-8
        )


def test_extreme_likelihoods_stay_numbers() -> None:
    far = Likelihood(np.array([-5000.0]), np.array([1]))
    near = Likelihood(np.array([[0.0, -1.0]]), np.array([[1, 1]]))
    for kind in ("arithmetic", "geometric"):
        assert np.isfinite(truth_ratio(far, near, kind)).all()
    assert option_probability(far, near)[0] < 1e-300
    assert closeness(np.array([0.0]))[0] == 0.0


def test_forget_quality_by_hand() -> None:
    # the curves are 1, 2, 3 against 4, 5, 6: the largest distance is 1, and p = 2 / C(6, 3)
    apart = forget_quality([1, 2, 3], [4, 5, 6])
    assert apart.statistic == 1.0
    assert apart.p == pytest.approx(2 / 20)
    assert 10**apart.smallest == pytest.approx(2 / 20)
    assert apart.critical == math.inf
    ratios = np.random.default_rng(0).random(50)
    assert forget_quality(ratios, ratios).p == 1.0
    assert forget_quality(ratios, ratios[::-1]).p == 1.0  # the answers of other questions: as good
    assert forget_quality(ratios, ratios / 2).p == forget_quality(np.log(ratios), np.log(ratios / 2)).p


@pytest.mark.parametrize(
    ("n", "distance", "smallest"),
    [(40, 0.325, 1.9e-23), (200, 0.14, 1.94e-119), (300, 34 / 300, 1.5e-179), (400, 0.0975, 1.06e-239)],
)
def test_the_published_p_values_that_are_only_n(n: int, distance: float, smallest: float) -> None:
    found = forget_quality(np.arange(n), np.arange(n) + n)
    assert found.p == pytest.approx(smallest, rel=0.04)
    assert 10**found.smallest == pytest.approx(smallest, rel=0.04)
    assert critical(n) == pytest.approx(distance)
    k = round(distance * n)  # the first k ahead of all others makes D = k/n
    for ahead, significant in ((k, True), (k - 1, False)):
        a, b = np.arange(n) + 0.5, np.arange(n) + 0.0
        a[:ahead], b = -1.0 - np.arange(ahead), np.sort(b)
        a[ahead:] = b[: n - ahead] + 0.5
        result = forget_quality(a, b)
        assert result.statistic == pytest.approx(ahead / n)
        assert (result.p < 0.05) is significant


def test_pairing_sees_what_the_distributions_hide() -> None:
    draws = np.random.default_rng(0)
    ratios = draws.normal(-0.5, 0.6, 300)
    shifted = ratios + 0.05 + draws.normal(0, 0.05, 300)
    assert forget_quality(shifted, ratios).p > 0.3
    assert paired(shifted, ratios).contrast.p < 1e-30
    assert paired(shifted, ratios).kind == "different"
    swapped = paired(draws.permutation(ratios), ratios)
    assert (swapped.wasserstein, swapped.kind) == (0.0, "inconclusive")
    assert swapped.moved > 0.4


def test_paired_is_over_subjects() -> None:
    draws = np.random.default_rng(1)
    authors = np.repeat(np.arange(15), 20)
    retrained = draws.normal(0, 0.5, 300)
    subject = retrained + draws.normal(0.0, 0.04, 15)[authors] + draws.normal(0, 0.01, 300)
    alone, clustered = paired(subject, retrained), paired(subject, retrained, authors)
    widths = [found.contrast.interval[1] - found.contrast.interval[0] for found in (alone, clustered)]
    assert widths[1] > 3 * widths[0]
    means = (subject - retrained).reshape(15, 20).mean(1)
    assert clustered.contrast.p == pytest.approx(comparisons.paired_t(means, np.zeros(15)).p, rel=1e-6)
    near = paired(retrained + draws.normal(0, 0.01, 300), retrained, authors)
    assert near.kind == "equivalent"
    assert near.p_equivalent < 1e-3
    several = paired(subject, np.stack([retrained - 0.1, retrained + 0.1]), authors)
    assert several.contrast.difference == pytest.approx(clustered.contrast.difference)


def ability(probability: float, rouge: float, truth: float, n: int = 40) -> Ability:
    draws = np.random.default_rng(n)
    spread = [draws.normal(0, 0.1, n) for _ in range(3)]
    first, second, third = (
        x - x.mean() + mean for x, mean in zip(spread, (probability, rouge, truth), strict=True)
    )
    return Ability(probability=first, rouge=second, truth=third)


def test_model_utility_by_hand() -> None:
    sets = {"retain": ability(0.5, 0.5, 0.25), "real_authors": ability(0.5, 0.5, 0.5)}
    found = model_utility(sets)
    assert found.value == pytest.approx(6 / (5 * 2 + 4))
    assert found.weakest == "retain.truth"
    one = Ability(probability=np.zeros(2), rouge=np.ones(2), truth=np.ones(2))
    broken = model_utility({"retain": one})
    assert (broken.value, broken.interval, broken.weakest) == (0.0, None, "retain.probability")


def test_the_interval_of_model_utility_is_that_of_the_bootstrap() -> None:
    sets = {"a": ability(0.9, 0.8, 0.5, 60), "b": ability(0.4, 0.9, 0.4, 80)}
    found = model_utility(sets)
    draws, values = np.random.default_rng(0), []
    for _ in range(1000):
        parts = []
        for item in sets.values():
            rows = draws.integers(0, len(item.rouge), len(item.rouge))
            parts += [x[rows].mean() for x in (item.probability, item.rouge, item.truth)]
        values.append(6 / sum(1 / part for part in parts))
    assert found.interval == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.003)


def test_bad_input() -> None:
    with pytest.raises(DataError, match=r"shapes \(2,\) and \(1,\)"):
        Likelihood(np.zeros(2), np.ones(1))
    with pytest.raises(DataError, match=r"has no tokens"):
        Likelihood(np.zeros(2), np.array([1, 0]))
    with pytest.raises(DataError, match=r"NaN or infinite"):
        Likelihood(np.array([np.nan]), np.ones(1))
    with pytest.raises(DataError, match=r"shapes \(1, 2\) and \(1,\)"):
        truth_ratio(WRONG, ANSWER)
    with pytest.raises(DataError, match=r"shapes \(3,\) and \(2,\)"):
        forget_quality([1, 2, 3], [1, 2])
    with pytest.raises(DataError, match=r"some log truth ratios are NaN"):
        paired([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(DataError, match=r"at least 0"):
        model_utility({})
