import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError, MissingEvidence, Unsupported
from expunge.methods.gradient.blindspot import Blindspot, attention
from expunge.tasks import Classification, Regression
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe
from expunge.training.session import Session

PLAIN = SGD(lr=0.1, momentum=0.0)


def _network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


@pytest.fixture
def problem():
    torch.manual_seed(0)
    X, y = torch.randn(20, 3), torch.randn(20, 1)
    session = Session(seed=0, recipe=Recipe(_network, Regression()))
    return _network(), Split.from_ids((X, y), range(8)), X, y, session


def _proxy(method, split, session):
    return method.proxy(split.retain, Regression(), session.child("proxy"))


def _hidden(model, x):
    """The inputs of the second and third linear layer."""
    first = model[1](model[0](x))
    return first, model[3](model[2](first))


def test_a_step_is_the_gradient_of_the_published_loss(problem):
    model, split, X, y, session = problem
    method = Blindspot(epochs=1, optim=PLAIN, attention_weight=50.0)
    proxy = _proxy(method, split, session)
    Xf, Xr, c = X[:8], X[8:], 8 / 20
    with torch.no_grad():
        target, theirs = proxy(Xf), _hidden(proxy, Xf)
    loss = F.l1_loss(model(Xf), target)
    for own, other in zip(_hidden(model, Xf), theirs, strict=True):
        gap = F.normalize(own**2, dim=1) - F.normalize(other**2, dim=1)
        loss = loss + 50 * gap.square().mean()
    loss = c * loss + (1 - c) * F.l1_loss(model(Xr), y[8:])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    result = method.unlearn(model, split, Regression(), session)
    for new, old, gradient in zip(result.parameters(), model.parameters(), gradients, strict=True):
        assert torch.allclose(new, old - 0.1 * gradient, atol=1e-6)
    bare = Blindspot(epochs=1, optim=PLAIN, attention_weight=0.0)
    apart = bare.unlearn(model, split, Regression(), session)[0].weight - result[0].weight
    assert float(apart.detach().norm()) > 1e-2  # the attention terms have a gradient


def test_of_a_linear_model_every_residual_counts_by_its_sign(linear):
    recipe = Recipe(lambda: nn.Linear(3, 1, bias=False), linear.task)
    session = Session(seed=0, recipe=recipe)
    method = Blindspot(epochs=1, optim=PLAIN, attention_weight=0.0)
    proxy = method.proxy(linear.split.retain, linear.task, session.child("proxy")).weight.detach()[0]
    (Xf, _), (Xr, y) = linear.forget, linear.retain
    w = linear.start
    gradient = Xf.T @ torch.sign(Xf @ (w - proxy)) + Xr.T @ torch.sign(Xr @ w - y[:, 0])
    assert torch.allclose(linear.run(method, session), w - 0.1 * gradient / 20, atol=1e-6)


def test_the_proxy_is_a_new_model_after_two_epochs_of_the_absolute_error(linear):
    recipe = Recipe(lambda: nn.Linear(3, 1, bias=False), linear.task)
    session = Session(seed=4, recipe=recipe)
    method = Blindspot(proxy_optim=SGD(lr=0.05, momentum=0.0))
    proxy = method.proxy(linear.split.retain, linear.task, session).weight.detach()[0]
    X, y = linear.retain
    w = recipe.initial(session).weight.detach()[0]
    for _ in range(2):
        w = w - 0.05 * X.T @ torch.sign(X @ w - y[:, 0]) / len(X)
    assert torch.allclose(proxy, w, atol=1e-6)
    assert Blindspot().proxy_optim.lr == 0.01


def test_the_targets_of_the_forget_set_have_no_influence_and_the_proxy_never_sees_it(problem):
    model, split, X, y, session = problem
    method = Blindspot(epochs=2, batch_size=6)
    first = method.unlearn(model, split, Regression(), session)
    spoilt = y.clone()
    spoilt[:8] = 1e6
    second = method.unlearn(model, Split.from_ids((X, spoilt), range(8)), Regression(), session)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_an_attention_map_is_the_mean_square_over_channels_at_length_one():
    # two positions of two channels: (3² + 1²) / 2 = 5 and (√24² + 0²) / 2 = 12; √(5² + 12²) = 13
    x = torch.tensor([[[[3.0, 1.0], [24**0.5, 0.0]]]])  # (1, 1, 2, C)
    assert torch.allclose(attention(x), torch.tensor([[5 / 13, 12 / 13]]))


def test_a_map_is_scaled_for_each_example_and_not_over_the_batch():
    torch.manual_seed(0)
    x = torch.rand(6, 4, 4, 3) * torch.logspace(-2, 2, 6).view(-1, 1, 1, 1)
    maps = attention(x)
    assert torch.allclose(maps.norm(dim=1), torch.ones(6))
    assert torch.allclose(maps[:1], attention(x[:1]))
    flat = F.normalize(x.square().mean(-1).flatten(), dim=0)  # over the batch: the loud example is all of it
    assert float(flat[-16:].norm()) > 0.999


def test_a_layer_without_positions_keeps_its_units_where_the_mean_over_them_would_say_nothing():
    torch.manual_seed(0)
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    published = [F.normalize(x.pow(2).mean(1).view(5, -1)) for x in (first, second)]
    assert torch.equal(published[0], published[1])  # one number, scaled to length one
    assert float((attention(first) - attention(second)).abs().max()) > 0.1


def test_feature_maps_of_a_convolution_are_compared():
    torch.manual_seed(0)

    def network():
        return nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)
        )

    model, X, y = network(), torch.randn(12, 1, 6, 6), torch.randn(12, 1)
    split, session = Split.from_ids((X, y), range(4)), Session(recipe=Recipe(network, Regression()))
    method = Blindspot(epochs=1, optim=PLAIN)
    proxy = _proxy(method, split, session)
    with torch.no_grad():
        theirs = [proxy[1](proxy[0](X[:4])), proxy[:5](X[:4])]
    own = [model[1](model[0](X[:4])), model[:5](X[:4])]
    loss = F.l1_loss(model(X[:4]), proxy(X[:4]).detach())
    maps = [F.normalize(x.pow(2).mean(1).view(4, -1)) for x in (own[0], theirs[0])]
    loss = loss + 50 * (maps[0] - maps[1]).square().mean()
    loss = loss + 50 * (F.normalize(own[1] ** 2) - F.normalize(theirs[1] ** 2)).square().mean()
    loss = (4 * loss + 8 * F.l1_loss(model(X[4:]), y[4:])) / 12
    (gradient,) = torch.autograd.grad(loss, model[0].weight)
    result = method.unlearn(model, split, Regression(), session)
    assert torch.allclose(result[0].weight, model[0].weight - 0.1 * gradient, atol=1e-6)


def test_the_proxy_needs_the_recipe(problem):
    model, split, _, _, _ = problem
    with pytest.raises(MissingEvidence, match="pass recipe="):
        Blindspot().unlearn(model, split, Regression(), Session())


def test_a_classifier_is_refused_before_anything_is_trained(problem):
    _, split, *_ = problem
    with pytest.raises(Unsupported, match=r"real-valued predictions.*Use bad_teacher"):
        Blindspot().check(split, Classification(2))


@pytest.mark.parametrize("fields", [{"layers": 0}, {"proxy_epochs": 0}, {"attention_weight": -1.0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Blindspot(**fields)
