import pytest
import torch
from scipy import stats
from torch import nn

from expunge.data import Split
from expunge.methods.gradient.random_labels import RandomLabels
from expunge.tasks import Classification
from expunge.training.optim import SGD
from expunge.training.session import Session


class Recording(Classification):
    """Keeps what was drawn, ids beside labels."""

    def __init__(self, classes):
        super().__init__(classes)
        object.__setattr__(self, "drawn", [])

    def relabel(self, batch, generator):
        changed = super().relabel(batch, generator)
        self.drawn.append((batch["ids"], changed["targets"]))
        return changed


@pytest.fixture
def problem():
    torch.manual_seed(0)
    X, y = torch.randn(30, 4), torch.arange(30) % 3
    return nn.Linear(4, 3, bias=False), Split.from_ids((X, y), range(10)), X, y


def test_labels_are_uniform_over_all_classes_the_true_one_included():
    batch = {"targets": torch.full((6000,), 2), "ids": torch.arange(6000)}
    drawn = Classification(5).relabel(batch, torch.Generator().manual_seed(0))["targets"]
    counts = torch.bincount(drawn, minlength=5)
    assert len(counts) == 5
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_labels_are_drawn_anew_in_every_epoch(problem):
    model, split, *_ = problem
    task = Recording(3)
    RandomLabels(epochs=3, batch_size=4).unlearn(model, split, task, Session())
    epochs = [task.drawn[i : i + 3] for i in (0, 3, 6)]  # 10 examples in batches of 4
    labels = []
    for epoch in epochs:
        ids, drawn = (torch.cat(column) for column in zip(*epoch, strict=True))
        assert torch.equal(ids.sort().values, torch.arange(10))
        labels.append(drawn[ids.argsort()])
    assert not torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[1], labels[2])


def test_an_epoch_fits_the_drawn_labels_first_and_the_true_ones_of_the_retain_set_then(problem):
    model, split, X, y = problem
    task = Recording(3)
    method = RandomLabels(epochs=1, optim=SGD(lr=0.5, momentum=0.0))
    result = method.unlearn(model, split, task, Session())
    ((ids, drawn),) = task.drawn
    W = model.weight.detach()
    for inputs, labels in ((X[ids], drawn), (X[10:], y[10:])):
        W = W.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(inputs @ W.T, labels), W)
        W = (W - 0.5 * g).detach()
    assert torch.allclose(result.weight, W, atol=1e-6)


def test_the_true_labels_of_the_forget_set_have_no_influence(problem):
    model, split, X, y = problem
    wrong = Split.from_ids((X, torch.where(torch.arange(30) < 10, (y + 1) % 3, y)), range(10))
    method = RandomLabels(epochs=2, batch_size=4)
    first, second = (method.unlearn(model, s, Classification(3), Session()) for s in (split, wrong))
    assert torch.equal(first.weight, second.weight)
