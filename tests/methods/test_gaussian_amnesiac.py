import pytest
import torch
from scipy import stats
from torch import nn

from expunge.data import Split
from expunge.errors import Unsupported
from expunge.methods.gradient.gaussian_amnesiac import GaussianAmnesiac
from expunge.tasks import Classification, Regression
from expunge.training.optim import SGD
from expunge.training.session import Session


class Recording(Regression):
    """Keeps the targets of every batch in the order of ids."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "seen", [])

    def loss(self, outputs, batch):
        self.seen.append(batch["targets"][batch["ids"].argsort()].clone())
        return super().loss(outputs, batch)


def _seen(y, forget, **fields):
    X = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(1))
    model = nn.Linear(3, y.shape[1])
    task = Recording()
    method = GaussianAmnesiac(batch_size=len(y), **fields)
    method.unlearn(model, Split.from_ids((X, y), range(forget)), task, Session())
    return task.seen


def test_a_step_is_that_of_least_squares_with_drawn_targets(linear):
    task = Recording()
    method = GaussianAmnesiac(epochs=2, optim=SGD(lr=0.1, momentum=0.0))
    found = method.unlearn(linear.model, linear.split, task, linear.session).weight.detach()[0]
    X, y = torch.cat([linear.forget[0], linear.retain[0]]), task.seen[0][:, 0]
    assert torch.equal(y[6:], linear.retain[1][:, 0])
    w = linear.start
    for _ in range(2):
        w = w - 0.1 * X.T @ (X @ w - y) / 20
    assert torch.allclose(found, w, atol=1e-6)
    assert torch.equal(task.seen[0], task.seen[1])  # drawn once


def test_targets_follow_the_normal_distribution_of_all_training_targets_output_by_output():
    draws = torch.Generator().manual_seed(0)
    y = torch.randn(4000, 2, generator=draws).abs() * torch.tensor([1.0, 30.0]) + torch.tensor([50.0, -5.0])
    (seen,) = _seen(y, 2000)
    assert torch.equal(seen[2000:], y[2000:])
    for k in range(2):
        mean, sd = float(y[:, k].mean()), float(y[:, k].std())
        assert stats.kstest(seen[:2000, k].numpy(), "norm", (mean, sd)).pvalue > 1e-3
        assert stats.kstest(y[:2000, k].numpy(), "norm", (mean, sd)).pvalue < 1e-10  # the true ones do not
    assert abs(float(torch.corrcoef(seen[:2000].T)[0, 1])) < 0.1  # outputs are drawn apart


def test_the_distribution_is_that_of_forget_and_retain_targets_together():
    y = torch.cat([torch.zeros(500, 1), torch.full((500, 1), 10.0)])  # mean 5, sd 5.0025
    (seen,) = _seen(y, 500)
    assert float(seen[:500].mean()) == pytest.approx(5, abs=4 * 5 / 500**0.5)
    assert float(seen[:500].std()) == pytest.approx(5, rel=0.15)


def test_a_classifier_is_refused_before_anything_is_trained():
    X, y = torch.randn(8, 4), torch.arange(8) % 2
    split = Split.from_ids((X, y), range(2))
    for call in (
        lambda: GaussianAmnesiac().check(split, Classification(2)),
        lambda: GaussianAmnesiac().unlearn(nn.Linear(4, 2), split, Classification(2), Session()),
    ):
        with pytest.raises(Unsupported, match=r"real-valued targets.*Use amnesiac"):
            call()
