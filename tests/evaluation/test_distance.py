"""Distances of outputs from retraining, against scipy and by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from tests.evaluation.answers import Answers, evidence, split, sure
from torch import nn

from expunge.data import ArrayData, Split
from expunge.evaluation.evaluate import Candidate, evaluate
from expunge.evaluation.metrics.distance import (
    KL,
    ActivationDistance,
    AverageGap,
    Completeness,
    JensenShannon,
)
from expunge.evaluation.metrics.utility import Accuracy
from expunge.tasks import Regression
from expunge.training.session import Session

PARTS = split([0, 1, 0, 1, 0, 1], forget=2, test=2)


def logs(rows: list[list[float]]) -> Answers:
    """A model with these probabilities for each of the six examples."""
    return Answers(torch.log(torch.tensor(rows * (6 // len(rows)))))


def test_kl_is_scipys_in_both_directions_averaged_over_examples_and_references() -> None:
    p, a, b = [[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.4, 0.6]], [[0.99, 0.01], [0.1, 0.9]]
    found = evidence(PARTS, logs(p), [logs(a), logs(b)])["subject"]
    forward = np.mean([entropy(r, p, axis=1).mean() for r in (a, b)])
    reverse = np.mean([entropy(p, r, axis=1).mean() for r in (a, b)])
    assert KL()(found).value == pytest.approx(forward, rel=1e-5)
    assert KL(direction="reverse")(found).value == pytest.approx(reverse, rel=1e-5)
    assert abs(forward - reverse) > 0.01
    assert KL()(found).id == "divergence.forget.kl-forward"
    assert KL(direction="reverse")(found).id == "divergence.forget.kl-reverse"


def test_kl_by_hand_is_not_divided_by_the_number_of_classes() -> None:
    # KL([1/2, 1/4, 1/4] ‖ [1/4, 1/4, 1/2]) = 1/2 ln 2 − 1/4 ln 2
    found = evidence(PARTS, logs([[0.25, 0.25, 0.5]]), [logs([[0.5, 0.25, 0.25]])], classes=3)["subject"]
    assert KL()(found).value == pytest.approx(math.log(2) / 4, rel=1e-5)


def test_an_infinite_kl_is_a_reason_and_jensen_shannon_is_still_finite() -> None:
    # logits 6e38 apart: their difference is beyond single precision, so class 1 has probability 0
    excludes = Answers([[3e38, -3e38], [-3e38, 3e38]] * 3)
    found = evidence(PARTS, excludes, [logs([[0.5, 0.5]])])["subject"]
    score = KL()(found)
    assert math.isnan(score.value)
    assert "infinite or NaN for 2 of 2 forget examples" in score.reason
    assert "jensen_shannon" in score.reason


def test_jensen_shannon_is_scipys() -> None:
    p, a = [[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.4, 0.6]]
    found = evidence(PARTS, logs(p), [logs(a)])["subject"]
    expected = (jensenshannon(p, a, axis=1) ** 2).mean()
    assert JensenShannon()(found).value == pytest.approx(expected, rel=1e-4)


def test_activation_distance_by_hand() -> None:
    # (0.7, 0.3) − (0.4, 0.6) has the length 0.3 √2; opposite certain answers the largest, √2
    found = evidence(PARTS, logs([[0.7, 0.3]]), [logs([[0.4, 0.6]])])["subject"]
    assert ActivationDistance()(found).value == pytest.approx(0.3 * math.sqrt(2), rel=1e-6)
    opposite = evidence(PARTS, sure([0] * 6), [sure([1] * 6)])["subject"]
    assert ActivationDistance(part="retain")(opposite).value == pytest.approx(math.sqrt(2), rel=1e-3)
    same = evidence(PARTS, sure([0] * 6), [sure([0] * 6)])["subject"]
    assert ActivationDistance()(same).value == 0.0


def test_completeness_counts_equal_answers_right_or_wrong() -> None:
    # test examples 4, 5 of labels 0, 1: the subject says 1, 1; the references 1, 0 and 1, 1
    subject = sure([0, 0, 0, 0, 1, 1])
    references = [sure([0, 0, 0, 0, 1, 0]), sure([0, 0, 0, 0, 1, 1])]
    score = Completeness()(evidence(PARTS, subject, references)["subject"])
    assert score.value == pytest.approx(0.75)
    assert score.per_example.tolist() == [1.0, 0.5]
    assert score.id == "completeness.test"


def test_the_ceiling_of_completeness_is_in_the_rows_of_the_retrained_models() -> None:
    references = [sure([0, 0, 0, 0, a, b]) for a, b in ((0, 0), (0, 1), (1, 1))]
    found = evidence(PARTS, sure([0] * 6), references)
    # the pairs (1, 2) and (2, 3) agree on one of two examples, (1, 3) on none
    ceilings = [Completeness()(found[f"retrained {i}"]).value for i in (1, 2, 3)]
    assert ceilings == pytest.approx([0.25, 0.5, 0.25])


def test_average_gap_of_a_retrained_model_leaves_it_out_of_the_mean() -> None:
    answers = ([0, 1, 0, 1, 0, 1], [1, 1, 0, 1, 0, 0], [1, 0, 1, 1, 0, 1])
    found = evidence(PARTS, sure([0] * 6), [sure(a) for a in answers])
    metric = AverageGap(membership=Accuracy(part="forget"))
    # accuracies on forget: 1, ½, 0; on retain: 1, 1, ½; on test: 1, ½, 1
    by_hand = [
        (3 / 4 + 1 / 4 + 1 / 4 + 3 / 4) / 4,
        (0 + 1 / 4 + 1 / 2 + 0) / 4,
        (3 / 4 + 1 / 2 + 1 / 4 + 3 / 4) / 4,
    ]
    measured = [metric(found[f"retrained {i}"]).value for i in (1, 2, 3)]
    assert measured == pytest.approx(by_hand)
    # the subject says 0 everywhere, ½ on each part, against the means ½, 5/6, 5/6
    assert metric(found["subject"]).value == pytest.approx((0 + 1 / 3 + 1 / 3 + 0) / 4)


def test_a_retrained_model_with_another_number_of_classes_is_a_reason() -> None:
    found = evidence(PARTS, sure([0] * 6), [sure([0] * 6, classes=3)])["subject"]
    for metric in (KL(), ActivationDistance(), Completeness(part="forget")):
        assert "outputs of shape (2, 3); a classifier of 2 classes needs (2, 2)" in metric(found).reason


def test_kl_works_on_a_regressor_and_class_distances_say_that_they_do_not() -> None:
    x = torch.randn(20, 2)
    data = ArrayData({"inputs": x, "targets": x.sum(1, keepdim=True)})
    rows = evaluate(
        [Candidate("original", "original", nn.Linear(2, 1)), Candidate("r", "retrained", nn.Linear(2, 1))],
        Split.from_ids(data, range(5), test=data), Regression(), Session(0),
        [KL(), ActivationDistance(), Completeness()],
    )  # fmt: skip
    kl, distance, completeness = rows[0].scores.values()
    assert kl.reason is None
    assert kl.value > 0
    for score in (distance, completeness):
        assert "compares class probabilities; the task 'Regression' has none" in score.reason


def test_of_one_retrained_model_only_its_own_row_has_no_value() -> None:
    found = evidence(PARTS, logs([[0.7, 0.3]]), [logs([[0.4, 0.6]])])
    for metric in (KL(), ActivationDistance(), Completeness(), JensenShannon()):
        assert metric(found["subject"]).reason is None
        assert "no (other) retrained model" in metric(found["retrained 1"]).reason
