import pytest
import torch
from tests.methods.label_views import TASK, drawn, view

from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.undial import Undial
from expunge.training.optim import SGD


def test_the_gradient_is_the_softmax_minus_the_lowered_target():
    logits, labels, original = drawn()
    (found,) = torch.autograd.grad(
        Undial(beta=3.0).forgetting(view(logits, labels, original), TASK).sum(), logits
    )
    lowered = original.clone()
    lowered[0, 4, labels[0, 5]] -= 3.0  # the token before label 5 of the first example, which has 5 labels
    expected = (logits[0, 4].softmax(-1) - lowered[0, 4].softmax(-1)) / 5
    assert torch.allclose(found[0, 4], expected, atol=1e-6)


@pytest.mark.parametrize("setting", ["classification", "causal_lm"], indirect=True)
@pytest.mark.parametrize(("beta", "moves"), [(0.0, False), (2.0, True)])
def test_with_beta_0_the_gradient_is_0_at_the_original(setting, beta, moves):
    method = Undial(epochs=1, beta=beta, optim=SGD(lr=1.0, momentum=0.0))
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    pairs = zip(result.parameters(), setting.original.parameters(), strict=True)
    assert (max(float((a - b).detach().abs().max()) for a, b in pairs) > 1e-5) == moves


def test_the_target_does_not_follow_the_model():
    """At the target itself the gradient is 0: the objective has its minimum there, and stays."""
    _, labels, original = drawn()
    target = original.clone()
    for row, column in (labels[:, 1:] != -100).nonzero().tolist():
        target[row, column, labels[row, column + 1]] -= 10.0
    target.requires_grad_()
    loss = Undial().forgetting(view(target, labels, original), TASK).sum()
    assert float(torch.autograd.grad(loss, target)[0].abs().max()) < 1e-7


@pytest.mark.parametrize("setting", ["regression", "diffusion"], indirect=True)
def test_tasks_without_classes_are_refused_by_the_check(setting):
    with pytest.raises(Unsupported, match="undial compares the probabilities"):
        Undial().check(setting.split, setting.task)


def test_a_negative_beta_is_refused():
    with pytest.raises(ConfigError, match="beta"):
        Undial(beta=-1.0)
