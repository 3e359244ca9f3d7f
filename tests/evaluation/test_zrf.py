"""ZRF: the divergence from a model that was never trained, as meant and as published."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from tests.conftest import Setting
from tests.evaluation.answers import Answers, evidence, split
from torch import nn

from expunge.evaluation import controls
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.metrics.zrf import ZRF, published

PARTS = split([0, 1, 0, 1, 0, 1], forget=2, test=2)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch):
    """Sets what the never-trained model answers."""

    def answers(model: nn.Module) -> None:
        monkeypatch.setattr(controls, "control", lambda name, original, session: model)

    return answers


def test_zrf_is_one_less_scipys_divergence(untrained) -> None:
    p, q = np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([[0.5, 0.5], [0.4, 0.6]])
    untrained(Answers(np.log(np.tile(q, (3, 1)))))
    model = Answers(np.log(np.tile(p, (3, 1))))
    score = ZRF()(evidence(PARTS, model, [model])["subject"])
    assert score.value == pytest.approx(1 - (jensenshannon(p, q, axis=1) ** 2).mean(), rel=1e-5)
    assert score.id == "ZRF.forget.js"


@pytest.mark.parametrize("classes", [10, 1000])
def test_opposite_answers_look_random_to_the_published_zrf_with_many_classes(untrained, classes: int) -> None:
    one, other = 20.0 * torch.eye(classes)[[0] * 6], 20.0 * torch.eye(classes)[[1] * 6]
    untrained(Answers(other))
    found = evidence(PARTS, Answers(one), [Answers(one)], classes=classes)["subject"]
    assert ZRF()(found).value == pytest.approx(1 - math.log(2), abs=1e-4)
    # mixture (½, ½, …) against e^−20 in the class that each side excludes: ½ (20 − 2 ln 2) / C
    expected = 1 - (10 - math.log(2)) / classes
    score = ZRF(definition="conformance")(found)
    assert score.value == pytest.approx(expected, abs=2e-4)
    assert (score.value > 0.99) == (classes == 1000)
    assert score.id == "ZRF.forget.js-conformance"


def test_the_published_divergence_is_kl_div_with_its_default_reduction() -> None:
    draws = torch.Generator().manual_seed(0)
    first, second = torch.randn(8, 5, generator=draws), torch.randn(8, 5, generator=draws)
    p, q = first.softmax(1), second.softmax(1)
    m = (p + q) / 2
    with pytest.warns(UserWarning, match="reduction: 'mean'"):
        expected = 0.5 * F.kl_div(p.log(), m) + 0.5 * F.kl_div(q.log(), m)
    assert published(first, second).mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_probability_of_zero_is_a_reason_under_the_published_definition_only(untrained) -> None:
    untrained(Answers([[0.0, 200.0]] * 6))  # e^−200 is 0 in single precision
    model = Answers([[1.0, 0.0]] * 6)
    found = evidence(PARTS, model, [model])["subject"]
    score = ZRF(definition="conformance")(found)
    assert "2 of 2 forget examples have a class of probability 0" in score.reason
    assert 1 - math.log(2) < ZRF()(found).value < 1


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_the_untrained_model_itself_scores_one_and_the_trained_one_less(setting: Setting) -> None:
    candidates = [Candidate("original", "original", setting.original)]
    evaluation = Evaluation(candidates, setting.split, setting.task, setting.session)
    found = evaluation.evidence(candidates[0])
    fresh = controls.control("never_trained", found.original, found.session)
    again = [*candidates, Candidate("fresh", "unlearned", fresh)]
    evaluation = Evaluation(again, setting.split, setting.task, setting.session)
    trained, untrained = (ZRF()(evaluation.evidence(candidate)) for candidate in again)
    assert untrained.value == pytest.approx(1.0, abs=1e-6)
    assert trained.value < 0.95
    assert ZRF()(evaluation.evidence(again[0])).value == trained.value


@pytest.mark.parametrize("setting", ["regression"], indirect=True)
def test_a_regressor_has_no_zrf(setting: Setting) -> None:
    candidates = [Candidate("original", "original", setting.original)]
    found = Evaluation(candidates, setting.split, setting.task, setting.session).evidence(candidates[0])
    assert "no Jensen-Shannon" in ZRF()(found).reason
    assert "the task 'Regression' has none" in ZRF(definition="conformance")(found).reason
