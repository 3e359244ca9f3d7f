import pytest
import torch
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError
from expunge.methods.base import GradientMethod
from expunge.methods.edits.task_vector import TaskVector
from expunge.methods.scopes.last_layers import LastLayers
from expunge.tasks import Classification
from expunge.training.optim import SGD
from expunge.training.session import Session


def test_one_step_by_hand(linear):
    step = 0.1 * linear.gradient(linear.start, "forget")
    optim = SGD(lr=0.1, momentum=0.0)
    for alpha in (0.5, 1.0, 3.0):
        result = linear.run(TaskVector(epochs=1, optim=optim, alpha=alpha))
        assert torch.allclose(result, linear.start + alpha * step, atol=1e-6)


def test_it_raises_the_forget_loss_and_tuning_lowers_it(linear):
    def loss(weight):
        X, y = linear.forget
        return float((X @ weight - y[:, 0]).square().mean())

    result = linear.run(TaskVector(epochs=3, optim=SGD(lr=0.05)))
    tuned = 2 * linear.start - result
    assert loss(tuned) < loss(linear.start) < loss(result)


def test_with_alpha_zero_every_bit_is_the_originals(setting):
    result = TaskVector(alpha=0.0, epochs=2, batch_size=4).unlearn(
        setting.original, setting.split, setting.task, setting.session
    )
    before, after = setting.original.state_dict(), result.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_running_statistics_stay_although_tuning_moved_them(setting):
    method = TaskVector(epochs=2, batch_size=4)
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    before, after = dict(setting.original.named_buffers()), dict(result.named_buffers())
    assert before
    assert all(torch.equal(before[name], after[name]) for name in before)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_a_tied_matrix_moves_once(linear):
    torch.manual_seed(0)
    model, task = Tied(), Classification(4)
    split = Split.from_ids((torch.randn(16, 4), torch.arange(16) % 4), range(8))
    optim = SGD(lr=0.1, momentum=0.0)
    result = TaskVector(epochs=1, batch_size=8, optim=optim, alpha=1.0).unlearn(model, split, task, Session())
    (batch,) = split.forget.batches([torch.arange(8)], device="cpu")
    loss = task.loss(model(batch["inputs"]), batch).mean()
    (gradient,) = torch.autograd.grad(loss, [model.first.weight])
    assert result.first.weight is result.second.weight
    assert torch.allclose(result.first.weight, model.first.weight + 0.1 * gradient, atol=1e-6)
    assert gradient.abs().max() > 1e-2  # had it moved twice, it would show


def test_bfloat16_weights_are_subtracted_in_float32_and_rounded_once():
    """α τ rounded to bfloat16 before it is taken away is another number for some weights."""
    torch.manual_seed(0)
    model = nn.Linear(40, 30).bfloat16()
    split = Split.from_ids((torch.randn(16, 40).bfloat16(), torch.arange(16) % 30), range(8))

    method = TaskVector(epochs=1, optim=SGD(lr=0.5, momentum=0.0), alpha=5.3)
    start = model.weight.detach()
    tuned = GradientMethod.unlearn(method, model, split, Classification(30), Session()).weight.detach()
    found = method.unlearn(model, split, Classification(30), Session()).weight.detach()
    exact = (start.double() - 5.3 * (tuned.double() - start.double())).bfloat16()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact)
    assert not torch.equal(start - 5.3 * (tuned - start), exact)


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_the_scope_holds(setting):
    method = TaskVector(epochs=1, batch_size=4, scope=LastLayers(), optim=SGD(lr=0.1))
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session).state_dict()
    before = setting.original.state_dict()
    assert {n for n in before if not torch.equal(before[n], result[n])} == {"head.weight", "head.bias"}


def test_a_negative_factor_is_refused():
    with pytest.raises(ConfigError, match="alpha: must not be negative"):
        TaskVector(alpha=-1.0)
