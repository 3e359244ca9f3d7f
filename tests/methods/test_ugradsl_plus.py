import pytest
import torch
from torch import nn

from expunge.data import Split
from expunge.errors import Unsupported
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.gradient.ugradsl import UGradSL
from expunge.methods.gradient.ugradsl_plus import UGradSLPlus
from expunge.tasks import Classification
from expunge.training.optim import SGD
from expunge.training.session import Session

PLAIN = SGD(lr=0.3, momentum=0.0)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    X, y = torch.randn(20, 4), torch.arange(20) % 3
    return nn.Linear(4, 3, bias=False), Split.from_ids((X, y), range(6)), X, y


def _run(method, problem, session=None):
    model, split, *_ = problem
    return method.unlearn(model, split, Classification(3), session or Session()).weight.detach()


@pytest.mark.parametrize("batch_size", [4, 32])
def test_without_smoothing_it_is_grad_diff(problem, batch_size):
    shared = {"epochs": 3, "batch_size": batch_size, "optim": PLAIN, "retain_weight": 0.8}
    first, second = _run(UGradSLPlus(smoothing=0.0, **shared), problem), _run(GradDiff(**shared), problem)
    assert torch.allclose(first, second, atol=1e-6)


def test_one_step_ascends_on_smoothed_labels(problem):
    model, _, X, y = problem
    a, p, W = -0.6, 0.8, model.weight.detach()
    labels = torch.eye(3)[y]
    labels[:6] = (1 - a) * labels[:6] + a / 3  # 1.4 on the class, −0.2 on each other one
    assert torch.allclose(labels[0], torch.tensor([1.4, -0.2, -0.2]))
    residual = (X @ W.T).softmax(1) - labels
    step = p * residual[6:].T @ X[6:] / 14 - (1 - p) * residual[:6].T @ X[:6] / 6
    method = UGradSLPlus(epochs=1, optim=PLAIN, smoothing=a, retain_weight=p)
    assert torch.allclose(_run(method, problem), W - 0.3 * step, atol=1e-6)


@pytest.mark.parametrize(("method", "steps"), [(UGradSLPlus, 4), (UGradSL, 2)])
def test_the_retain_set_drives_the_loop_and_the_forget_set_starts_again(problem, method, steps):
    totals = []
    session = Session(callbacks=(lambda event: totals.append(event.total),))
    _run(method(epochs=1, batch_size=4), problem, session)  # 6 to forget, 14 to retain
    assert totals[0] == steps


def test_with_equal_batches_that_hold_everything_both_methods_are_one(problem):
    shared = {"epochs": 2, "batch_size": 32, "optim": PLAIN}
    assert torch.allclose(_run(UGradSL(**shared), problem), _run(UGradSLPlus(**shared), problem), atol=1e-6)


@pytest.mark.parametrize("setting", ["regression"], indirect=True)
def test_a_task_without_classes_is_refused(setting):
    with pytest.raises(
        Unsupported, match="ugradsl_plus smooths labels, and task 'Regression' has no classes"
    ):
        UGradSLPlus().unlearn(setting.original, setting.split, setting.task, setting.session)
