"""Tug of war by hand."""

import pytest
from tests.evaluation.answers import evidence, split, sure

from expunge.config import build, dump
from expunge.evaluation.attacks.membership import Threshold
from expunge.evaluation.metric import metrics
from expunge.evaluation.metrics.tug_of_war import TugOfWar

# four examples each of forget, retain and test, all of class 0
PARTS = split([0] * 12, forget=4, test=4)


def right(forget: int, retain: int, test: int):
    """A model that is right on so many of the four examples of each part."""
    return sure([int(i >= n) for n in (forget, retain, test) for i in range(4)])


def test_the_product_and_its_factors_by_hand() -> None:
    found = evidence(PARTS, right(4, 3, 2), [right(1, 4, 3), right(2, 4, 4)])
    score = TugOfWar()(found["subject"])
    # gaps 1 − 3/8, 3/4 − 1 and 1/2 − 7/8
    assert score.details["factors"] == pytest.approx({"forget": 3 / 8, "retain": 3 / 4, "test": 5 / 8})
    assert score.value == pytest.approx(3 / 8 * 3 / 4 * 5 / 8)
    assert score.interval[0] <= score.value <= score.interval[1]
    assert score.n == 12
    assert score.id == "ToW"


def test_a_retrained_model_is_compared_with_the_others() -> None:
    found = evidence(PARTS, right(4, 4, 4), [right(1, 4, 3), right(2, 4, 4), right(3, 3, 4)])
    # gaps of the second: 2/4 − 2/4, 1 − 7/8, 1 − 7/8
    assert TugOfWar()(found["retrained 2"]).value == pytest.approx(7 / 8 * 7 / 8)


def test_equal_answers_score_one_with_an_interval_of_no_width() -> None:
    score = TugOfWar()(evidence(PARTS, right(2, 4, 3), [right(2, 4, 3)])["subject"])
    assert (score.value, score.interval) == (1.0, (1.0, 1.0))


def test_the_interval_holds_a_value_at_the_bound() -> None:
    # accuracies agree, answers do not: every resample that is not balanced lies below the value, 1
    subject = sure([0, 0, 1, 1] * 3)
    other = sure([1, 1, 0, 0] * 3)
    score = TugOfWar()(evidence(PARTS, subject, [other])["subject"])
    assert score.value == 1.0
    assert score.interval[0] < 0.9
    assert score.interval[1] == 1.0


def test_with_an_attack_its_value_takes_the_place_of_forget_accuracy() -> None:
    found = evidence(PARTS, right(4, 4, 2), [right(1, 4, 2)])
    attack = Threshold()
    gap = attack(found["subject"]).value - attack(found["retrained 1"]).value
    score = TugOfWar(membership=attack)(found["subject"])
    # both are right on all of retain and half of test, so the threshold is theirs: 0 and 3/4 are outside
    assert gap == pytest.approx(-3 / 4)
    assert score.value == pytest.approx(1 / 4)
    assert score.id == "ToW.mia-threshold"


def test_it_is_built_from_a_configuration_with_and_without_an_attack() -> None:
    assert build(metrics, "tow") == TugOfWar()
    assert build(metrics, dump(TugOfWar(membership=Threshold()))) == TugOfWar(membership=Threshold())


def test_without_a_retrained_model_there_is_a_reason() -> None:
    assert "no (other) retrained model" in TugOfWar()(evidence(PARTS, right(4, 4, 4), [])["subject"]).reason
