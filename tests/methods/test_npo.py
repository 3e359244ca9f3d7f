import math
from types import SimpleNamespace

import pytest
import torch
from tests.methods.questions import (
    check_padding_does_not_count,
    check_parts_add_up,
    check_prompts_get_no_gradient,
    gradients,
    llama,
    originals,
    step,
)
from torch import nn

from expunge.data import Split, fixed_order
from expunge.errors import ConfigError
from expunge.methods.gradient.npo import NPO
from expunge.tasks import Classification
from expunge.training.optim import SGD
from expunge.training.session import Session


def _step(now, before):
    forget = SimpleNamespace(log_likelihood=now, original_log_likelihood=before)
    return SimpleNamespace(forget=forget, retain=SimpleNamespace(loss=torch.zeros(1)))


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_the_weight_of_an_example_is_two_p_to_the_beta_over_the_sum(beta):
    before = torch.tensor([-1.0, -2.0, -0.5, -3.0])
    now = torch.tensor([-4.0, -2.0, -0.1, -1.0], requires_grad=True)
    NPO(beta=beta).objective(_step(now, before))["forget"].backward()
    p, reference = now.detach().exp() ** beta, before.exp() ** beta
    assert torch.allclose(len(now) * now.grad, 2 * p / (p + reference), atol=1e-6)


def test_small_beta_is_gradient_ascent_wherever_the_model_is():
    now = torch.tensor([-9.0, -2.0, -0.1], requires_grad=True)
    NPO(beta=1e-4).objective(_step(now, torch.tensor([-1.0, -2.0, -3.0])))["forget"].backward()
    assert torch.allclose(len(now) * now.grad, torch.ones(3), atol=1e-3)


def test_examples_already_forgotten_are_left_alone():
    now = torch.tensor([-200.0], requires_grad=True)
    NPO(beta=1.0).objective(_step(now, torch.tensor([-1.0])))["forget"].backward()
    assert 0 <= float(now.grad) < 1e-6


def _first_step(setting, **fields):
    """The weights after one step over the whole forget set, and the first value of the forget term."""
    values = []

    def keep(event):
        if event.kind == "evaluated":
            values.append(event.values["forget"])

    session = Session(callbacks=(keep,))
    method = NPO(epochs=1, optim=SGD(lr=0.01, momentum=0.0), **{"retain_weight": 0.0, **fields})
    result = method.unlearn(setting.original, setting.split, setting.task, session)
    return dict(result.named_parameters()), values[0]


def _ascent(setting):
    """``θ − η ∇ mean ℓℓ`` with the model in evaluation mode."""
    model = setting.fresh().eval()
    data = setting.split.forget
    (batch,) = data.batches(fixed_order(len(data), len(data)), device="cpu")
    setting.task.log_likelihood(setting.task.outputs(model, batch), batch).mean().backward()
    return {name: (p - 0.01 * p.grad).detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("setting", ["classification", "regression", "causal_lm"], indirect=True)
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_first_step_is_gradient_ascent_on_the_summed_log_likelihood(setting, beta):
    weights, _ = _first_step(setting, beta=beta)
    expected = _ascent(setting)
    assert all(torch.allclose(weights[name], expected[name], atol=1e-6) for name in expected)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_objective_starts_at_two_over_beta_times_log_two_on_every_task(setting, beta):
    _, value = _first_step(setting, beta=beta)
    assert value == pytest.approx(2 / beta * math.log(2), rel=1e-5)


@pytest.fixture
def noisy():
    """Batch norm far from its running statistics, and dropout."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    split = Split.from_ids((3 + 5 * torch.randn(16, 4), torch.arange(16) % 3), range(8))
    return SimpleNamespace(original=model, split=split, task=Classification(3))


def test_both_passes_are_in_evaluation_mode_whatever_mode_the_model_came_in(noisy):
    _, value = _first_step(noisy)
    assert value == pytest.approx(20 * math.log(2), rel=1e-6)


def test_in_training_mode_the_first_weights_are_not_one(noisy):
    _, value = _first_step(noisy, mode="train")
    assert abs(value - 20 * math.log(2)) > 0.1


def test_the_reference_is_the_model_handed_in(setting):
    moved = setting.fresh()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(0.7)
    changed = SimpleNamespace(original=moved, split=setting.split, task=setting.task)
    _, value = _first_step(changed)
    assert value == pytest.approx(20 * math.log(2), rel=1e-5)


def test_the_retain_loss_enters_with_its_weight(linear):
    forget, retain = (linear.gradient(linear.start, part) for part in ("forget", "retain"))
    method = NPO(epochs=1, optim=SGD(lr=0.1, momentum=0.0), retain_weight=0.5)
    expected = linear.start - 0.1 * (0.5 * retain - forget)
    assert torch.allclose(linear.run(method), expected, atol=1e-5)


def test_the_divergence_holds_the_predictions_on_the_retain_set(linear):
    rate = 0.05
    fields = {"epochs": 2, "optim": SGD(lr=rate, momentum=0.0), "beta": 1e-4, "retain": "divergence"}
    first = linear.start + rate * linear.gradient(linear.start, "forget")
    X, _ = linear.retain  # the divergence of two unit Gaussians is half the squared distance of their means
    drift = X.T @ (X @ (first - linear.start)) / len(X)
    expected = first + rate * (linear.gradient(first, "forget") - 2.0 * drift)
    assert torch.allclose(linear.run(NPO(**fields, retain_weight=2.0)), expected, atol=1e-3)


@pytest.mark.parametrize("setting", ["classification", "regression", "causal_lm"], indirect=True)
def test_the_divergence_is_zero_at_the_original_so_that_the_first_step_is_npos_own(setting):
    alone, _ = _first_step(setting)
    beside, _ = _first_step(setting, retain="divergence", retain_weight=1.0)
    assert all(torch.allclose(alone[name], beside[name], atol=1e-6) for name in alone)


def test_the_retain_terms_of_a_language_model_are_the_loss_and_the_divergence():
    views = step(llama(1), llama())
    for name, expected in (("loss", views.retain.loss), ("divergence", views.retain.drift)):
        term = NPO(retain=name, retain_weight=0.7).objective(views)["retain"]
        assert float(term) == pytest.approx(0.7 * float(expected.mean()))


def test_the_gradient_at_a_llama_original_is_that_of_the_summed_log_likelihood():
    model = llama()
    views = step(model, llama())
    found = gradients(NPO(retain_weight=0.0).objective(views), model)
    expected = gradients({"ascent": views.forget.log_likelihood.mean()}, model)
    assert torch.allclose(found, expected, atol=1e-4)
    assert float(expected.abs().max()) > 0.1


def test_kept_log_likelihoods_of_the_original_are_its_live_ones():
    known = originals(llama())
    NPO().objective(step(llama(2), known))
    again, live = (NPO().objective(step(llama(1), source))["forget"] for source in (known, llama()))
    assert float(again) == pytest.approx(float(live), abs=1e-6)


FORMS = [{}, {"retain": "divergence"}]


@pytest.mark.parametrize("fields", FORMS)
def test_padding_does_not_count(fields):
    check_padding_does_not_count(NPO(**fields))


@pytest.mark.parametrize("fields", FORMS)
def test_parts_add_up(fields):
    check_parts_add_up(NPO(**fields))


@pytest.mark.parametrize("fields", FORMS)
def test_prompts_get_no_gradient(fields):
    check_prompts_get_no_gradient(NPO(**fields))


def test_without_a_retain_term_no_retain_batch_is_read(linear):
    class Untouchable:
        def __len__(self):
            return 4

        ids = torch.arange(4)
        augmented = False

    split = Split(linear.split.forget, Untouchable())
    result = NPO(epochs=1, retain_weight=0.0).unlearn(linear.model, split, linear.task, linear.session)
    assert not torch.equal(result.weight, linear.model.weight)


@pytest.mark.parametrize("fields", [{"beta": 0.0}, {"beta": -1.0}, {"retain_weight": -0.1}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        NPO(**fields)
