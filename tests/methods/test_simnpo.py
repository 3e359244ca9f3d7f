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

from expunge.errors import ConfigError
from expunge.methods.gradient.simnpo import SimNPO


def _value(losses, **fields):
    views = SimpleNamespace(forget=SimpleNamespace(loss=losses))
    return SimNPO(retain_weight=0.0, **fields).objective(views)["forget"]


@pytest.mark.parametrize("margin", [0.0, 0.8])
def test_the_value_is_that_of_the_formula_with_the_margin_outside_beta(margin):
    inside = [4.5 * 0.7 - margin, 4.5 * 2.0 - margin]
    expected = 0.125 * 2 / 4.5 * sum(math.log1p(math.exp(-x)) for x in inside) / 2
    value = _value(torch.tensor([0.7, 2.0]), beta=4.5, forget_weight=0.125, margin=margin)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_a_margin_inside_beta_is_another_loss():
    """Authors and open-unlearning multiply it by β: theirs is ours over β."""
    losses = torch.tensor([0.7, 2.0])
    inside = -2 / 4.5 * torch.nn.functional.logsigmoid(4.5 * (losses - 0.3)).mean()
    ours = {
        margin: float(_value(losses, beta=4.5, forget_weight=1.0, margin=margin)) for margin in (0.3, 1.35)
    }
    assert ours[1.35] == pytest.approx(float(inside), rel=1e-5)
    assert abs(ours[0.3] - float(inside)) > 1e-3


def test_the_weight_of_an_example_falls_with_its_own_loss():
    losses = torch.tensor([0.1, 1.0, 6.0], requires_grad=True)
    _value(losses, beta=2.0, forget_weight=0.5, margin=0.0).backward()
    p = torch.exp(-2.0 * losses.detach())  # π^(β/T)
    assert torch.allclose(-3 * losses.grad, 0.5 * 2 * p / (1 + p), atol=1e-6)


def test_small_beta_is_ascent_on_the_token_means():
    model = llama(1)
    views = step(model, llama())
    method = SimNPO(beta=1e-5, forget_weight=1.0, retain_weight=0.0)
    expected = gradients({"ascent": -views.forget.loss.mean()}, model)
    assert torch.allclose(gradients(method.objective(views), model), expected, atol=1e-3)
    assert float(expected.abs().max()) > 0.1


def test_an_answer_twice_as_long_counts_as_much():
    """The token mean is one number whatever the length; the sum, NPO's, is not."""
    views = step(llama(1), llama()).forget
    counts = (views.batch["labels"][:, 1:] != -100).sum(1)
    assert counts.unique().numel() > 1
    assert torch.allclose(-views.log_likelihood, views.loss * counts, atol=1e-4)
    expected = _value(views.loss, beta=2.5)
    assert torch.equal(SimNPO().objective(step(llama(1), llama()))["forget"], expected)


def test_nothing_of_the_original_is_asked():
    class Untouched:
        def __getattr__(self, name):
            raise AssertionError(name)

    views = step(llama(1), originals(llama()))
    for part in (views.forget, views.retain):
        part._original = Untouched()
    assert set(SimNPO().objective(views)) == {"forget", "retain"}


def test_a_label_on_the_first_token_is_not_counted():
    """It has no token before it to be predicted from; the codes of others divide by it too."""

    def everything(rows):
        labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
        return {**rows, "labels": labels}

    views = step(llama(1), llama(), everything).forget
    predicted = (views.batch["labels"][:, 1:] != -100).sum(1)
    assert torch.allclose(views.loss * predicted, -views.log_likelihood, atol=1e-4)
    assert not torch.allclose(views.loss * (predicted + 1), -views.log_likelihood, atol=1e-2)


def test_padding_does_not_count():
    check_padding_does_not_count(SimNPO())


def test_parts_add_up():
    check_parts_add_up(SimNPO())


def test_prompts_get_no_gradient():
    check_prompts_get_no_gradient(SimNPO())


@pytest.mark.parametrize("fields", [{"beta": 0.0}, {"forget_weight": 0.0}, {"retain_weight": -0.1}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        SimNPO(**fields)
