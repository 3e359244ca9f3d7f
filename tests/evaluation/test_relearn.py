"""Relearning by hand: one weight, a quadratic loss, full batches."""

import copy
import math

import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError
from expunge.evaluation.attacks.relearn import Anamnesis, RelearnTime, Runs
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.tasks import Regression
from expunge.training.optim import SGD
from expunge.training.session import Session

# loss ½ (w − 1)² on x = y = 1: a step of rate ½ halves 1 − w, so the losses are quartered
STEP = {"margin": 0.0, "batch_size": 8, "optim": SGD(lr=0.5, momentum=0.0)}


def weight(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def evidence(subject: nn.Module, *retrained: nn.Module, original: float = 1.0):
    data = ArrayData({"inputs": torch.ones(16, 1), "targets": torch.ones(16)})
    candidates = [Candidate("original", "original", weight(original)), Candidate("u", "unlearned", subject)]
    candidates += [Candidate(f"r{i}", "retrained", model) for i, model in enumerate(retrained)]
    evaluation = Evaluation(candidates, Split.from_ids(data, range(8)), Regression(), Session(0))
    return evaluation.evidence(candidates[1])


def starting(loss: float) -> nn.Linear:
    return weight(1 - math.sqrt(2 * loss))


def test_the_curve_is_the_loss_after_each_step_beside_that_of_retraining() -> None:
    score = RelearnTime(tolerance=0.04, repeats=2, **STEP)(
        evidence(starting(0.5), starting(2.0), starting(1.0))
    )
    assert score.value == 2
    assert not score.censored
    assert [step for step, _ in score.details["curve"]] == [0, 1, 2]
    assert [loss for _, loss in score.details["curve"]] == pytest.approx([0.5, 0.125, 0.03125], rel=1e-4)
    # 2 → .5 → .125 → .03125 and 1 → .25 → .0625 → .0156
    expected = [1.5, 0.375, 0.09375, (0.03125 + 0.015625) / 2]
    assert [loss for _, loss in score.details["retrained_curve"]] == pytest.approx(expected, rel=1e-4)
    assert score.details["goal"] == pytest.approx(0.04)


def test_a_run_that_is_done_stays_at_its_last_loss() -> None:
    assert Runs(((4.0, 1.0), (4.0, 3.0, 1.0)), goal=1.0).curve == [[0, 4], [1, 2], [2, 1]]


def test_without_retrained_models_there_is_a_curve_alone() -> None:
    score = RelearnTime(tolerance=0.04, **STEP)(evidence(starting(0.5)))
    assert "curve" in score.details
    assert "retrained_curve" not in score.details


def test_the_anamnesis_index_by_hand() -> None:
    # goal .125. 1 → .25 → .0625: crosses at 1 + (.25 − .125)/(.25 − .0625) = 1⅔;
    # .5 → .125: exactly 1 step; retrained mean of 2 → .5 → .125 (2 steps) and 1: (2 + 1⅔)/2
    found = evidence(starting(0.5), starting(2.0), starting(1.0))
    score = Anamnesis(tolerance=0.125, **STEP)(found)
    assert score.value == pytest.approx(1 / ((2 + 5 / 3) / 2), rel=1e-3)
    assert score.n == 5
    assert score.target == "retrained"
    assert Anamnesis(tolerance=0.125, **STEP)(found.of(found.retrained[1])).value == pytest.approx(
        5 / 6, rel=1e-3
    )


def test_whole_steps_hide_a_difference_that_the_crossing_shows() -> None:
    # goal .2: from .25 the first step ends at .0625 after ~ .27 of it, from .75 at .1875 after ~ .98
    found = evidence(starting(0.25), starting(0.75), original=1 - math.sqrt(0.4))
    corrected = Anamnesis(tolerance=0.0, **STEP)(found)
    published = Anamnesis(definition="conformance", **STEP)(found)
    assert published.value == 1
    assert published.id == "anamnesis index.forget.loss-conformance"
    first, second = (0.25 - 0.2) / (0.25 - 0.0625), (0.75 - 0.2) / (0.75 - 0.1875)
    assert corrected.value == pytest.approx(first / second, rel=1e-2)
    assert corrected.value < 0.3


def test_conformance_trains_on_forget_and_retain_together_with_no_tolerance() -> None:
    # 16 examples in batches of 8; retain has y = 1 as well, so each step still quarters the loss
    found = evidence(starting(0.5), starting(2.0), original=1 - math.sqrt(0.1))
    score = Anamnesis(definition="conformance", tolerance=9.0, **STEP)(found)
    assert score.details["goal"] == pytest.approx(0.05)
    assert score.value == pytest.approx(2 / 3)  # .5 → .125 → .03 and 2 → .5 → .125 → .03


@pytest.mark.parametrize("definition", ["corrected", "conformance"])
def test_nothing_to_relearn_is_a_reason_and_not_0_over_0(definition) -> None:
    found = evidence(weight(1.0), weight(1.0))
    score = Anamnesis(definition=definition, **STEP)(found)
    assert math.isnan(score.value)
    assert "divide by 0 steps" in score.reason
    present = evidence(weight(1.0), starting(0.5))
    assert Anamnesis(tolerance=0.04, **STEP)(present).value == 0  # the knowledge is all there


def test_a_budget_that_ends_first_is_censored_or_a_reason() -> None:
    slow = {**STEP, "optim": SGD(lr=1e-4, momentum=0.0)}
    score = Anamnesis(budget=3, tolerance=0.04, **slow)(evidence(starting(0.5), starting(2.0)))
    assert "do not relearn the forget set within 3 steps" in score.reason
    # 2 → .5 → .125 needs 2 steps, 200 needs more than 3
    score = Anamnesis(budget=3, tolerance=0.125, **STEP)(evidence(starting(200.0), starting(2.0)))
    assert score.censored
    assert score.value == pytest.approx(1.5)
    assert "no (other) retrained model" in Anamnesis(**STEP)(evidence(starting(0.5))).reason


def test_a_step_that_overshoots_to_infinity_is_a_reason_and_a_broken_retrained_model_is_left_out() -> None:
    wild = {**STEP, "optim": SGD(lr=1e30, momentum=0.0)}
    score = RelearnTime(budget=1, tolerance=0.04, **wild)(evidence(starting(0.5)))
    assert "becomes NaN or infinite while 'u' relearns. Choose a smaller learning rate" in score.reason
    broken = evidence(starting(0.5), weight(math.nan), starting(1.0))
    score = RelearnTime(tolerance=0.04, **STEP)(broken)
    assert score.value == 2
    assert score.details["retrained_curve"][0] == pytest.approx([0, 1.0], rel=1e-4)
    assert "'r0' are NaN" in RelearnTime(tolerance=0.04, **STEP)(broken.of(broken.retrained[0])).reason


def test_relearning_leaves_the_models_byte_for_byte_and_their_modes() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        model[1].eval(), model[3].train()
        return model.requires_grad_(False)

    models = network(), network()
    before = [copy.deepcopy(model.state_dict()) for model in models]
    modes = [[module.training for module in model.modules()] for model in models]
    trained = [model.requires_grad_(True) for model in models]
    score = Anamnesis(budget=4, tolerance=0.001, batch_size=4, repeats=2)(evidence(*trained))
    assert score.details or score.reason
    for model, state, mode in zip(models, before, modes, strict=True):
        assert [module.training for module in model.modules()] == mode
        for name, tensor in model.state_dict().items():
            assert tensor.numpy().tobytes() == state[name].numpy().tobytes(), name
        assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_runs_are_shared_between_metrics_and_models_are_attacked_with_the_same_orders() -> None:
    started: list[str] = []
    found = evidence(starting(0.5), starting(2.0))
    session = found.session
    object.__setattr__(session, "callbacks", (lambda e: e.kind == "started" and started.append(e.what),))
    RelearnTime(tolerance=0.04, repeats=3, **STEP)(found)
    assert len(started) == 6
    Anamnesis(tolerance=0.04, repeats=5, **STEP)(found)
    assert len(started) == 10  # two further orders of two models


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Anamnesis(repeats=0)
    with pytest.raises(ConfigError, match="negative"):
        RelearnTime(margin=-0.1)
