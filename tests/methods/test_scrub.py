import pytest
import torch
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError
from expunge.methods.gradient.scrub import Scrub
from expunge.tasks import Classification
from expunge.training.loop import Pass
from expunge.training.optim import SGD
from expunge.training.session import Session

T = 3.0


@pytest.fixture
def problem():
    torch.manual_seed(0)
    X, y = torch.randn(18, 4), torch.arange(18) % 3
    model = nn.Linear(4, 3, bias=False)
    return model, Split.from_ids((X, y), range(6)), (X[:6], y[:6]), (X[6:], y[6:])


def _kl(reference, outputs):
    """``Σ_c p_c log(p_c / q_c)`` of tempered softmaxes, averaged over examples."""
    p, q = (reference / T).softmax(-1), (outputs / T).softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def test_forget_and_retain_passes_alternate_and_the_divergence_is_scaled_by_temperature_squared(problem):
    model, split, (Xf, _), (Xr, yr) = problem
    rate, alpha, gamma = 0.5, 0.4, 0.9
    W0 = model.weight.detach()
    W = W0.clone()
    for epoch in range(3):
        if epoch < 2:
            W.requires_grad_(True)
            (g,) = torch.autograd.grad(-(T**2) * _kl(Xf @ W0.T, Xf @ W.T), W)
            W = (W - rate * g).detach()
        W.requires_grad_(True)
        loss = gamma * nn.functional.cross_entropy(Xr @ W.T, yr) + alpha * T**2 * _kl(Xr @ W0.T, Xr @ W.T)
        (g,) = torch.autograd.grad(loss, W)
        W = (W - rate * g).detach()
    optim = SGD(lr=rate, momentum=0.0)
    method = Scrub(epochs=3, max_epochs=2, optim=optim, alpha=alpha, gamma=gamma, temperature=T)
    result = method.unlearn(model, split, Classification(3), Session())
    assert torch.allclose(result.weight, W, atol=1e-5)
    assert float((W - W0).norm()) > 0.1


def test_every_early_epoch_goes_over_forget_then_retain_and_late_ones_over_retain_alone():
    method = Scrub(epochs=3, max_epochs=2, forget_batch_size=32)
    both = (Pass("forget", batch_size=32), Pass("retain"))
    assert [tuple(method.passes(epoch)) for epoch in range(3)] == [both, both, (Pass("retain"),)]


def test_a_step_of_the_forget_pass_has_its_own_batch_size(problem):
    model, split, *_ = problem
    totals = []
    session = Session(callbacks=(lambda event: totals.append(event.total),))
    Scrub(epochs=1, batch_size=12, forget_batch_size=2).unlearn(model, split, Classification(3), session)
    assert totals[0] == 3 + 1


def test_without_the_forget_term_and_the_distillation_it_is_fine_tuning(problem):
    model, split, _, (Xr, yr) = problem
    method = Scrub(epochs=1, max_epochs=0, alpha=0.0, gamma=1.0, optim=SGD(lr=0.5, momentum=0.0))
    result = method.unlearn(model, split, Classification(3), Session())
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(Xr @ model.weight.T, yr), model.weight)
    assert torch.allclose(result.weight, model.weight - 0.5 * g, atol=1e-6)


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"forget_batch_size": 0}, {"epochs": 0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Scrub(**fields)
