from types import SimpleNamespace

import pytest
import torch
from tests.methods.label_views import TASK, drawn, view

from expunge.errors import ConfigError
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.gradient.satimp import SatImp
from expunge.methods.gradient.wga import WGA
from expunge.training.optim import SGD

NEUTRAL = [WGA(beta=0.0), SatImp(saturation=0.0, importance=0.0)]


def test_each_token_is_weighted_by_a_power_of_its_probability_without_gradient():
    logits, labels, _ = drawn(scale=2.0)
    (found,) = torch.autograd.grad(WGA(beta=0.5).forgetting(view(logits, labels), TASK).sum(), logits)
    p = logits[0, 4].softmax(-1)
    own = p[labels[0, 5]]
    onehot = torch.zeros_like(p).index_fill(0, labels[0, 5], 1.0)
    assert torch.allclose(found[0, 4], own**0.5 * (onehot - p) / 5, atol=1e-7)


@pytest.mark.parametrize("method", NEUTRAL, ids=lambda method: type(method).__name__)
def test_without_weights_the_objective_is_gradient_ascents(method):
    logits, labels, _ = drawn()
    step = SimpleNamespace(forget=view(logits, labels), retain=view(logits, labels), state=TASK)
    assert torch.allclose(method.objective(step)["forget"], GradAscent().objective(step)["forget"])


@pytest.mark.parametrize("setting", ["classification", "regression", "causal_lm", "diffusion"], indirect=True)
@pytest.mark.parametrize("kind", [WGA, SatImp])
def test_without_weights_it_is_gradient_ascent_on_every_task(setting, kind):
    shared = {"epochs": 2, "batch_size": 4, "optim": SGD(lr=1e-3), "mode": "eval"}
    fields = {"beta": 0.0} if kind is WGA else {"saturation": 0.0, "importance": 0.0}
    first, second = (
        method.unlearn(setting.original, setting.split, setting.task, setting.session).state_dict()
        for method in (kind(retain_weight=0.0, **fields, **shared), GradAscent(**shared))
    )
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    start = setting.original.state_dict()
    assert any(not torch.allclose(first[name], start[name], atol=1e-5) for name in first)


def test_the_weight_ends_the_ascent_on_what_is_forgotten():
    """Ascent pushes a token of probability e^-12 as hard as before; this does not."""
    logits = torch.tensor([[[0.0, 12.0], [0.0, 0.0]]], requires_grad=True)
    labels = torch.tensor([[-100, 0]])
    found = {}
    for beta in (0.0, 1.0):
        loss = WGA(beta=beta).forgetting(view(logits, labels), TASK).sum()
        found[beta] = float(torch.autograd.grad(loss, logits)[0].abs().max())
    assert found[0.0] > 0.99
    assert found[1.0] < 1e-5


def test_squared_errors_are_weighted_by_the_power_of_their_likelihood(linear):
    method = WGA(epochs=1, beta=2.0, optim=SGD(lr=0.1, momentum=0.0), retain_weight=0.5)
    X, y = linear.forget
    errors = X @ linear.start - y[:, 0]
    ascent = X.T @ (errors * torch.exp(-2.0 * errors.square() / 2)) / len(X)
    expected = linear.start + 0.1 * (ascent - 0.5 * linear.gradient(linear.start, "retain"))
    assert torch.allclose(linear.run(method), expected, atol=1e-5)


def test_a_negative_beta_is_refused():
    with pytest.raises(ConfigError, match="beta"):
        WGA(beta=-1.0)
