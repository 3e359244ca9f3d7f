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
    split,
    step,
    task,
)

from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.dpo import DPO
from expunge.methods.gradient.npo import NPO
from expunge.training.optim import SGD
from expunge.training.session import Session

FORMS = [{}, {"reduction": "mean"}, {"retain": "divergence"}, {"answers": "alternate", "beta": 2.0}]


def _view(now, before, counts=1.0):
    now, before, counts = (torch.as_tensor(value) for value in (now, before, counts))
    return SimpleNamespace(
        log_likelihood=now,
        original_log_likelihood=before,
        loss=-now / counts,
        original_loss=-before / counts,
    )


def _step(win, lose):
    lose.instead = {"idk": win}.__getitem__
    return SimpleNamespace(forget=lose)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_value_is_that_of_the_sigmoid_of_the_difference_of_ratios(beta):
    win, lose = _view([-1.0, -7.0], [-3.0, -2.0]), _view([-4.0, -1.0], [-1.5, -3.0])
    margins = [beta * (2.0 + 2.5), beta * (-5.0 - 2.0)]
    expected = 2 / beta * sum(math.log1p(math.exp(-m)) for m in margins) / 2
    value = DPO(beta=beta, retain_weight=0.0).objective(_step(win, lose))["forget"]
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_the_mean_over_tokens_is_another_loss_under_the_same_beta():
    win, lose = _view([-1.0], [-3.0], counts=2.0), _view([-4.0], [-1.5], counts=5.0)
    margin = 0.5 * (2.0 / 2 + 2.5 / 5)
    method = DPO(beta=0.5, reduction="mean", retain_weight=0.0)
    value = float(method.objective(_step(win, lose))["forget"])
    assert value == pytest.approx(4 * math.log1p(math.exp(-margin)), rel=1e-5)
    summed = float(DPO(beta=0.5, retain_weight=0.0).objective(_step(win, lose))["forget"])
    assert abs(summed - value) > 0.1


def test_without_what_the_preferred_answer_gains_it_is_npo():
    now = torch.tensor([-4.0, -2.0, -0.1], requires_grad=True)
    before = torch.tensor([-1.0, -2.0, -3.0])
    same = torch.tensor([-5.0, -6.0, -7.0])
    views = _step(_view(same, same), _view(now, before))
    values = [cls(beta=0.3, retain_weight=0.0).objective(views)["forget"] for cls in (DPO, NPO)]
    assert torch.equal(*values)
    assert torch.equal(*(torch.autograd.grad(value, now)[0] for value in values))


@pytest.mark.parametrize("fields", FORMS)
def test_it_starts_at_two_over_beta_times_log_two_and_pushes_the_two_answers_apart(fields):
    method, model = DPO(**fields), llama()
    views = step(model, llama())
    term = method.objective(views)["forget"]
    assert float(term) == pytest.approx(2 / method.beta * math.log(2), rel=1e-5)
    kind = "log_likelihood" if method.reduction == "sum" else "loss"
    sign = -1 if method.reduction == "sum" else 1
    win, lose = (getattr(v, kind).mean() for v in (views.forget.instead(method.answers), views.forget))
    pushed = gradients({"both": sign * (win - lose)}, model)
    assert torch.allclose(gradients({"forget": term}, model), pushed, atol=1e-4)


def test_the_retain_terms_are_the_loss_and_the_divergence():
    views = step(llama(1), llama())
    terms = {name: DPO(retain=name, retain_weight=0.7).objective(views) for name in ("loss", "divergence")}
    assert float(terms["loss"]["retain"]) == pytest.approx(0.7 * float(views.retain.loss.mean()))
    assert float(terms["divergence"]["retain"]) == pytest.approx(0.7 * float(views.retain.drift.mean()))
    assert torch.equal(terms["loss"]["forget"], terms["divergence"]["forget"])


@pytest.mark.parametrize("fields", FORMS)
def test_kept_values_of_the_original_are_its_live_ones(fields):
    method, known = DPO(**fields), originals(llama())
    first = method.objective(step(llama(2), known))
    again = method.objective(step(llama(1), known))  # reads what was kept
    live = method.objective(step(llama(1), llama()))
    assert abs(float(first["forget"]) - float(live["forget"])) > 1e-3
    assert float(again["forget"]) == pytest.approx(float(live["forget"]), abs=1e-6)


def test_from_the_second_epoch_on_the_original_is_not_asked():
    class Counted(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.frozen = model, 0

        def forward(self, ids, attention_mask=None):
            self.frozen += not torch.is_grad_enabled()
            return self.model(ids, attention_mask=attention_mask).logits

    counted = Counted(llama())
    known = originals(counted)
    for _ in range(3):
        DPO().objective(step(llama(1), known))
        assert counted.frozen == 2  # once each answer


def test_a_run_prefers_the_other_answer():
    method = DPO(epochs=20, optim=SGD(lr=0.05), beta=1.0)
    result = method.unlearn(llama(), split(), task(), Session(seed=0))
    before, after = step(llama(), llama()).forget, step(result, llama()).forget
    gained = [after.instead("idk").log_likelihood - before.instead("idk").log_likelihood]
    gained += [after.log_likelihood - before.log_likelihood]
    assert (gained[0] > gained[1] + 5).all()
    assert (gained[1] < 0).all()


@pytest.mark.parametrize("setting", ["causal_lm", "regression"], indirect=True)
def test_without_other_answers_it_says_so_before_anything_is_trained(setting):
    said = {"causal_lm": "the data has no 'alternate' answers", "regression": "has no other answers. Use a"}
    with pytest.raises(Unsupported, match=said[setting.name]):
        DPO(answers="alternate").check(setting.split, setting.task)


@pytest.mark.parametrize("fields", FORMS)
def test_padding_does_not_count(fields):
    check_padding_does_not_count(DPO(**fields))


@pytest.mark.parametrize("fields", FORMS)
def test_parts_add_up(fields):
    check_parts_add_up(DPO(**fields))


@pytest.mark.parametrize("fields", FORMS)
def test_prompts_get_no_gradient(fields):
    check_prompts_get_no_gradient(DPO(**fields), answers=(fields.get("answers", "idk"),))


@pytest.mark.parametrize("fields", [{"beta": 0.0}, {"beta": -1.0}, {"retain_weight": -0.1}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        DPO(**fields)
