import torch
from torch import nn

from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.optimisers.sign_sgd import SignSGD


def _step(weights, gradient, **fields):
    parameter = nn.Parameter(torch.tensor(weights))
    optimizer = SignSGD(**fields).optimizer([parameter])
    parameter.grad = torch.tensor(gradient)
    optimizer.step()
    return parameter.detach()


def test_every_coordinate_moves_by_the_learning_rate_against_the_sign():
    result = _step([1.0, 1.0, 1.0], [1e-9, -7.0, 0.0], lr=0.25)
    assert torch.equal(result, torch.tensor([0.75, 1.25, 1.0]))


def test_weight_decay_enters_before_the_sign():
    # g + λ θ = (−0.3 + 0.5, −0.7 + 0.5, 0 + 0.5)
    result = _step([1.0, 1.0, 1.0], [-0.3, -0.7, 0.0], lr=0.25, weight_decay=0.5)
    assert torch.equal(result, torch.tensor([0.75, 1.25, 0.75]))


def test_the_gradient_is_left_as_it_was():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = SignSGD(weight_decay=0.5).optimizer([parameter])
    parameter.grad = torch.tensor([0.3, -0.3])
    optimizer.step()
    assert torch.equal(parameter.grad, torch.tensor([0.3, -0.3]))


def test_in_the_loop_it_climbs_along_the_sign_of_the_forget_gradient(linear):
    expected = linear.start + 0.125 * linear.gradient(linear.start, "forget").sign()
    assert torch.equal(linear.run(GradAscent(epochs=1, optim=SignSGD(lr=0.125))), expected)
