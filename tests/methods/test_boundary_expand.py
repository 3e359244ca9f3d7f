import pytest
import torch
from torch import nn

from expunge.data import Split
from expunge.errors import Unsupported
from expunge.methods.gradient.boundary_expand import BoundaryExpand, _with_row
from expunge.tasks import Classification, Regression
from expunge.training.optim import SGD
from expunge.training.session import Session


@pytest.fixture
def problem():
    torch.manual_seed(0)
    X, y = torch.randn(12, 4), torch.arange(12) % 3
    forget = (y == 0).nonzero()[:, 0]
    return nn.Linear(4, 3), Split.from_ids((X, y), forget), X[forget]


def _by_hand(model, X, session, epochs, rate):
    """The widened layer after plain gradient steps towards the extra class."""
    weight, bias = _with_row(model, session.generator("row"))
    extra = nn.functional.one_hot(torch.tensor(3), 4)
    for _ in range(epochs):
        error = ((X @ weight.T + bias).softmax(1) - extra) / len(X)
        weight, bias = weight - rate * error.T @ X, bias - rate * error.sum(0)
    return weight, bias


def test_it_is_descent_towards_an_extra_class_whose_row_is_then_removed(problem):
    model, split, X = problem
    session = Session(seed=4)
    weight, bias = _by_hand(model, X, session, epochs=3, rate=0.5)
    method = BoundaryExpand(epochs=3, optim=SGD(lr=0.5, momentum=0.0))
    result = method.unlearn(model, split, Classification(3), session)
    assert torch.allclose(result.weight, weight[:3].detach(), atol=1e-6)
    assert torch.allclose(result.bias, bias[:3].detach(), atol=1e-6)
    assert (result.weight - model.weight).norm() > 0.1


def test_no_prediction_is_a_class_that_does_not_exist(problem):
    model, split, X = problem
    session = Session(seed=4)
    weight, bias = _by_hand(model, X, session, epochs=40, rate=1.0)
    assert (X @ weight.T + bias).argmax(1).tolist() == [3] * len(X)  # where the unit is kept
    method = BoundaryExpand(epochs=40, optim=SGD(lr=1.0, momentum=0.0))
    result = method.unlearn(model, split, Classification(3), session)
    assert result(X).shape == (len(X), 3)
    assert result.out_features == 3
    assert torch.equal(result(X).argmax(1), (X @ weight.T + bias)[:, :3].argmax(1))


def test_the_new_row_has_xaviers_deviation_and_the_old_ones_are_untouched():
    head = nn.Linear(400, 9)
    weight, bias = _with_row(head, torch.Generator().manual_seed(0))
    assert torch.equal(weight[:9], head.weight)
    assert torch.equal(bias[:9], head.bias)
    assert bias[9] == 0
    assert float(weight[9].std()) == pytest.approx((2 / 410) ** 0.5, rel=0.1)


def test_inside_a_network_the_layer_keeps_its_place_its_flags_and_its_lack_of_a_bias(problem):
    _, split, _ = problem
    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 3, bias=False)))
    model[1][1].weight.requires_grad_(False)
    method = BoundaryExpand(epochs=2, optim=SGD(lr=0.5))
    result = method.unlearn(model, split, Classification(3), Session())
    assert result.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(result[1][1].weight, model[1][1].weight)
    assert not result[1][1].weight.requires_grad
    assert not torch.equal(result[0].weight, model[0].weight)
    assert not any(module.training for module in result.modules())


def test_the_retain_set_is_not_used(problem):
    model, split, _ = problem
    method = BoundaryExpand(epochs=2, optim=SGD(lr=0.5))
    result = method.unlearn(model, split, Classification(3), Session())
    inputs = split.train().column("inputs").clone()
    inputs[split.retain.ids] *= 9
    other = Split.from_ids((inputs, split.train().column("targets")), split.forget.ids)
    assert torch.equal(result.weight, method.unlearn(model, other, Classification(3), Session()).weight)


def test_a_network_whose_last_layer_is_not_the_classifier_and_other_tasks_are_refused(problem):
    _, split, _ = problem
    with pytest.raises(Unsupported, match="task 'Regression' has none. Use a method for every task"):
        BoundaryExpand().check(split, Regression())
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (3, 2)), nn.AvgPool1d(2), nn.Flatten())
    with pytest.raises(Unsupported, match="layer '0' has 6 outputs, not one for each of the 3 classes. Use"):
        BoundaryExpand().unlearn(model, split, Classification(3), Session())
