import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.bad_teacher import BadTeacher
from expunge.tasks import Classification
from expunge.training.fresh import fresh
from expunge.training.optim import SGD, AdamW
from expunge.training.session import Session

PLAIN = SGD(lr=0.5, momentum=0.0)
SESSION = Session(seed=0)


class Recording(Classification):
    """Keeps the ids of every batch it compares."""

    def __init__(self, classes):
        super().__init__(classes)
        object.__setattr__(self, "seen", [])

    def divergence(self, reference, outputs, batch, temperature=1.0):
        self.seen.append(batch["ids"])
        return super().divergence(reference, outputs, batch, temperature)


def _problem(classes=3):
    torch.manual_seed(0)
    X, y = torch.randn(24, 4), torch.arange(24) % classes
    return nn.Linear(4, classes, bias=False), Split.from_ids((X, y), range(6)), X


def _textbook(lesson, outputs):
    p, q = lesson.softmax(-1), outputs.softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def test_the_forget_set_learns_from_an_untrained_network_and_the_rest_from_the_original():
    model, split, X = _problem()
    bad = fresh(model, SESSION.child("bad_teacher")).weight.detach()
    W0 = model.weight.detach()
    W = W0.clone()
    lesson = torch.cat([X[:6] @ bad.T, X[6:] @ W0.T])
    for _ in range(3):  # the first step has no gradient on the retain set
        W.requires_grad_(True)
        (g,) = torch.autograd.grad(_textbook(lesson, X @ W.T), W)
        W = (W - 0.5 * g).detach()
    method = BadTeacher(epochs=3, optim=PLAIN, fraction=1.0)
    result = method.unlearn(model, split, Classification(3), SESSION)
    assert torch.allclose(result.weight, W, atol=1e-6)
    assert float((W - W0).norm()) > 0.03


def test_for_a_linear_regression_it_converges_to_the_least_squares_of_both_teachers(linear):
    bad = fresh(linear.model, linear.session.child("bad_teacher")).weight.detach()[0]
    (Xf, _), (Xr, _) = linear.forget, linear.retain
    matrix = Xf.T @ Xf + Xr.T @ Xr
    expected = torch.linalg.solve(matrix, Xf.T @ Xf @ bad + Xr.T @ Xr @ linear.start)
    found = linear.run(BadTeacher(epochs=150, optim=PLAIN, fraction=1.0))
    assert torch.allclose(found, expected, atol=1e-4)
    assert float((found - linear.start).norm()) > 0.1


@pytest.mark.parametrize("classes", [3, 12])
def test_the_authors_reduction_takes_a_step_smaller_by_the_number_of_classes(classes):
    model, split, X = _problem(classes)
    task = Classification(classes)
    ours = BadTeacher(optim=PLAIN, fraction=1.0).unlearn(model, split, task, SESSION).weight - model.weight
    bad = fresh(model, SESSION.child("bad_teacher")).weight.detach()
    lesson = torch.cat([X[:6] @ bad.T, X[6:] @ model.weight.detach().T])
    W = model.weight.detach().clone().requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = F.kl_div(torch.log_softmax(X @ W.T, 1), lesson.softmax(1))  # torch's default reduction
    (theirs,) = torch.autograd.grad(loss, W)
    assert torch.allclose(ours, -0.5 * classes * theirs, atol=1e-6)

    first, second = W.detach().clone().requires_grad_(True), W.detach().clone().requires_grad_(True)
    for weight, scale in ((first, 1), (second, classes)):  # Adam divides the factor out
        weight.grad = scale * theirs
        torch.optim.Adam([weight], lr=1e-4).step()
    assert torch.allclose(first, second, atol=1e-7)


def test_every_batch_mixes_the_forget_set_with_one_draw_of_a_fraction_of_the_rest():
    model, split, _ = _problem()
    task = Recording(3)
    BadTeacher(epochs=2, batch_size=6, fraction=0.3).unlearn(model, split, task, SESSION)
    first, second = torch.cat(task.seen[:2]).sort().values, torch.cat(task.seen[2:]).sort().values
    assert torch.equal(first, second)
    assert len(first) == 6 + 5  # 0.3 · 18, rounded
    assert torch.equal(first[:6], torch.arange(6))
    assert all((ids < 6).any() and (ids >= 6).any() for ids in task.seen)


def test_a_temperature_softens_both(linear):
    def moved(temperature):
        return linear.run(BadTeacher(optim=PLAIN, temperature=temperature)) - linear.start

    assert torch.allclose(moved(4.0), moved(1.0) / 4, atol=1e-6)  # a Gaussian of 4 times the variance


def test_a_layer_that_cannot_initialise_itself_needs_a_recipe(linear):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 1))

        def forward(self, x):
            return x @ self.weight

    with pytest.raises(Unsupported, match="Give the recipe"):
        BadTeacher().unlearn(Bare(), linear.split, linear.task, linear.session)


def test_the_default_optimiser_is_adam_without_decay():
    assert BadTeacher().optim == AdamW(lr=1e-4, weight_decay=0.0)


@pytest.mark.parametrize("fields", [{"fraction": 0.0}, {"fraction": 1.1}, {"temperature": 0.0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        BadTeacher(**fields)
