import math

import pytest
import torch
from tests.methods.questions import (
    batch,
    check_padding_does_not_count,
    check_parts_add_up,
    check_prompts_get_no_gradient,
    gradients,
    llama,
    step,
    task,
)

from expunge.errors import ConfigError
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.gradient.kl_min import KLMin
from expunge.training.optim import SGD


def test_the_retain_term_and_its_gradient_are_zero_at_the_original():
    model = llama()
    retain = {"retain": KLMin().objective(step(model, llama()))["retain"]}
    assert 0 <= float(retain["retain"].detach()) < 1e-6
    assert float(gradients(retain, model).abs().max()) < 1e-5


def test_the_cross_entropy_that_others_call_kl_has_a_gradient_at_the_original():
    model = llama()
    view = step(model, llama()).retain
    logs, before = view.outputs.log_softmax(-1), view.original.log_softmax(-1)
    places = batch("retain")["labels"][:, 1:] != -100
    other = -(logs.exp() * before).sum(-1)[:, :-1][places].mean()
    assert float(gradients({"retain": other}, model).abs().max()) > 0.1


def test_away_from_the_original_it_is_the_divergence_with_the_original_first_at_answer_tokens():
    view = step(llama(1), llama()).retain
    p, q = (x[:, :-1].double().log_softmax(-1) for x in (view.original, view.outputs))
    places = batch("retain")["labels"][:, 1:] != -100
    forward, backward = ((a.exp() * (a - b)).sum(-1) for a, b in ((p, q), (q, p)))
    expected, reverse = (float(((kl * places).sum(1) / places.sum(1)).mean()) for kl in (forward, backward))
    assert abs(expected - reverse) > 0.01
    term = float(KLMin(retain_weight=3.0).objective(step(llama(1), llama()))["retain"])
    assert term == pytest.approx(3 * expected, rel=1e-5)


@pytest.mark.parametrize("setting", ["regression", "causal_lm"], indirect=True)
def test_the_first_step_is_gradient_ascent(setting):
    fields = {"epochs": 1, "batch_size": 100, "optim": SGD(lr=0.01, momentum=0.0)}
    ours, ascent = (
        cls(**fields, mode="eval").unlearn(setting.original, setting.split, setting.task, setting.session)
        for cls in (KLMin, GradAscent)
    )
    pairs = list(zip(ours.parameters(), ascent.parameters(), setting.original.parameters(), strict=True))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b, _ in pairs)
    assert any(not torch.allclose(a, before, atol=1e-4) for a, _, before in pairs)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_second_step_on_a_line_follows_the_closed_form(linear, weight):
    rate = 0.02
    method = KLMin(epochs=2, batch_size=100, optim=SGD(lr=rate, momentum=0.0), retain_weight=weight)
    first = linear.start + rate * linear.gradient(linear.start, "forget")
    X, _ = linear.retain  # the divergence of two unit Gaussians is half the squared distance of their means
    drift = X.T @ (X @ (first - linear.start)) / len(X)
    expected = first + rate * (linear.gradient(first, "forget") - weight * drift)
    assert torch.allclose(linear.run(method), expected, atol=1e-6)


def test_padding_does_not_count():
    check_padding_does_not_count(KLMin())


def test_the_divergence_over_all_positions_would_depend_on_padding():
    """TOFU's form: prompt and padding divide the same sum."""

    def diluted(rows):
        view = step(llama(1), llama(), lambda _: rows).retain
        p, q = (x.log_softmax(-1) for x in (view.original, view.outputs))
        return float((p.exp() * (p - q)).sum(-1).mean())

    rows = batch("retain")
    extra = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    longer = rows | {name: torch.nn.functional.pad(rows[name], (0, 9), value=v) for name, v in extra.items()}
    assert abs(diluted(longer) / diluted(rows) - 1) > 0.1


def test_parts_add_up():
    check_parts_add_up(KLMin())


def test_prompts_get_no_gradient():
    check_prompts_get_no_gradient(KLMin())


def test_the_divergence_is_at_most_its_bound_for_a_sure_original():
    """``KL ≤ log V`` for a uniform model: in nats, summed over the vocabulary and not divided by it."""
    uniform = llama(2)
    copy = type(uniform)(uniform.config).eval()
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    term = float(KLMin().objective(step(copy, uniform))["retain"])
    assert 0.1 < term < math.log(task().vocabulary)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(ConfigError, match="retain_weight"):
        KLMin(retain_weight=weight)
