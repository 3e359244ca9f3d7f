import pytest
import torch

from expunge.data import Split
from expunge.methods.gradient.finetune import Finetune
from expunge.training.optim import SGD


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_full_batches_converge_to_least_squares_on_the_retain_set(linear, momentum):
    X, y = linear.retain
    expected = torch.linalg.lstsq(X, y).solution[:, 0]
    method = Finetune(epochs=1000, optim=SGD(lr=0.1, momentum=momentum, weight_decay=0.0))
    assert torch.allclose(linear.run(method), expected, atol=1e-4)


def test_with_weight_decay_they_converge_to_ridge_regression(linear):
    X, y = linear.retain
    decay = 0.3
    expected = torch.linalg.solve(X.T @ X / len(X) + decay * torch.eye(3), X.T @ y / len(X))[:, 0]
    method = Finetune(epochs=300, optim=SGD(lr=0.1, momentum=0.0, weight_decay=decay))
    assert torch.allclose(linear.run(method), expected, atol=1e-5)


def test_the_forget_set_has_no_influence(linear):
    other = Split(linear.split.retain.subset(linear.split.retain.ids[:2]), linear.split.retain)
    first = Finetune(epochs=2, batch_size=4).unlearn(linear.model, linear.split, linear.task, linear.session)
    second = Finetune(epochs=2, batch_size=4).unlearn(linear.model, other, linear.task, linear.session)
    assert torch.equal(first.weight, second.weight)
