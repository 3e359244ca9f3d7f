import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.laf import LAF, Autoencoder
from expunge.methods.scopes.last_layers import LastLayers
from expunge.tasks import Classification
from expunge.training.features import penultimate
from expunge.training.optim import SGD, AdamW
from expunge.training.session import Session

TASK, SESSION = Classification(3), Session(seed=2)
FAST = AdamW(lr=1e-2, weight_decay=0.0)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    y = torch.arange(30) % 3
    X = 2 * torch.eye(3, 4)[y] + 0.3 * torch.randn(30, 4)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return model, X, y, Split.from_ids((X, y), range(0, 30, 3))


def bounded(u):
    return torch.exp(u / (u + 1))


def test_one_step_descends_both_terms_as_written(problem):
    model, X, _, split = problem
    rate, weight, tau = 5.0, 4.0, 3.0
    method = LAF(epochs=2, batch_size=64, optim=SGD(lr=rate, momentum=0.0), temperature=tau, fit_epochs=3)
    fitted = method.setup(model, split, TASK, SESSION)
    changed = copy.deepcopy(model)
    body, start = changed[:2], model[:2](X).detach()
    for _ in range(2):
        g, g_before = (h / h.norm(dim=1, keepdim=True) for h in (body(X), start))
        f, r = split.forget.ids, split.retain.ids
        far = 1 - F.cosine_similarity(g, g_before)
        u_all, u_forget = fitted.of_all.unexplained(g), fitted.of_forget.unexplained(g)
        extraction = bounded(u_all[r]).mean() - bounded(u_forget[f]).mean()
        alignment = far[r].mean() - (far[f] / tau).exp().sum().log()
        gradients = torch.autograd.grad(extraction + weight * alignment, list(body.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(body.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    result = method.unlearn(model, split, TASK, SESSION)
    assert torch.allclose(result[0].weight, changed[0].weight, atol=1e-5)
    assert torch.equal(result[2].weight, model[2].weight)  # no term reaches the head
    assert (result[0].weight - model[0].weight).norm() > 0.01


@pytest.mark.parametrize("targets", ["shuffled", "absent"])
def test_targets_are_never_read(problem, targets):
    model, X, y, split = problem
    other = {"inputs": X, "targets": y.flip(0)} if targets == "shuffled" else {"inputs": X}
    method = LAF(epochs=2, batch_size=8, fit_epochs=2, optim=FAST)
    first = method.unlearn(model, split, TASK, SESSION)
    second = method.unlearn(model, Split.from_ids(ArrayData(other), split.forget.ids), TASK, SESSION)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_forget_sets_representations_turn_and_the_others_hold(problem):
    model, X, _, split = problem
    result = LAF(epochs=20, batch_size=10, optim=FAST).unlearn(model, split, TASK, SESSION)
    turned = 1 - F.cosine_similarity(result[:2](X), model[:2](X))
    assert turned[split.forget.ids].mean() > 0.2
    assert turned[split.retain.ids].mean() < 0.1


def test_the_bounded_error_is_not_flat_however_large_the_features_are(problem):
    model, X, _, split = problem
    large = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        large[0].weight.copy_(10 * model[0].weight)
        raw = large[:2](X)
    nearest = raw - raw.clamp(0, 1)  # what a decoder that ends in a sigmoid leaves at the very least
    authors = nearest.square().sum(1)
    state = LAF(batch_size=64).setup(large, split, TASK, SESSION)
    ours = state.of_all.unexplained(F.normalize(penultimate(large, split.train(), TASK, SESSION)))
    assert (1 / (authors + 1).square()).median() < 0.005  # s'(u)
    assert (1 / (ours + 1).square()).min() > 0.3


def test_features_that_only_grow_longer_change_nothing(problem):
    *_, split = problem
    longer = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    shorter = copy.deepcopy(longer)
    with torch.no_grad():
        for parameter in longer[0].parameters():
            parameter *= 50
    fits = [LAF(batch_size=64).setup(m, split, TASK, SESSION).of_forget for m in (longer, shorter)]
    pairs = zip(*(fit.parameters() for fit in fits), strict=True)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in pairs)


def test_the_autoencoders_loss_is_the_squared_error_and_the_weighted_divergence():
    model = Autoencoder(5, 2).requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    mean, log_variance = torch.tensor([0.5, -1.0]), torch.tensor([0.2, 0.7])
    model.encoder[-1].bias.copy_(torch.cat([mean, log_variance]))
    model.decoder[-1].bias.fill_(3.0)  # a linear end: more than a sigmoid could say
    x = torch.arange(10.0).view(2, 5)
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
    assert torch.allclose(model.loss(x), ((x - 3) ** 2).sum(1) + 0.025 * divergence)
    assert torch.equal(model.unexplained(x), ((x - 3) ** 2).sum(1))


def test_laf_r_repairs_the_last_layer_with_the_targets_of_so_many_retained_examples(problem):
    model, X, y, split = problem
    fields = {"epochs": 1, "batch_size": 32, "fit_epochs": 1, "optim": FAST}
    plain = LAF(**fields).unlearn(model, split, TASK, SESSION)
    repaired = LAF(**fields, labelled=5, repair_epochs=3).unlearn(model, split, TASK, SESSION)
    assert torch.equal(plain[0].weight, repaired[0].weight)
    assert not torch.equal(plain[2].weight, repaired[2].weight)
    changes = 0
    for row in split.retain.ids.tolist():
        wrong = y.clone()
        wrong[row] = (y[row] + 1) % 3
        other = Split.from_ids((X, wrong), split.forget.ids)
        again = LAF(**fields, labelled=5, repair_epochs=3).unlearn(model, other, TASK, SESSION)
        changes += not torch.equal(again[2].weight, repaired[2].weight)
    assert changes == 5


def test_batch_norms_statistics_stay(problem):
    _, _, _, split = problem
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    result = LAF(epochs=1, fit_epochs=1).unlearn(model, split, TASK, SESSION)
    assert torch.equal(result[1].running_mean, model[1].running_mean)
    assert not torch.equal(result[1].weight, model[1].weight)


def test_a_scope_after_the_features_and_more_labels_than_there_are_are_refused(problem):
    model, _, _, split = problem
    with pytest.raises(Unsupported, match="nothing there may move. Use a scope with earlier layers"):
        LAF(fit_epochs=1, scope=LastLayers()).unlearn(model, split, TASK, SESSION)
    with pytest.raises(Unsupported, match="labelled=21, but 20 examples are retained. Set it to less"):
        LAF(labelled=21).check(split, TASK)


@pytest.mark.parametrize(
    "fields",
    [{"latent": 0}, {"temperature": 0.0}, {"align_weight": -1.0}, {"labelled": -1}, {"fit_epochs": 0}],
)
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        LAF(**fields)
