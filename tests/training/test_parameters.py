import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from expunge.data import ArrayData, CropFlip
from expunge.errors import CheckpointError, DataError
from expunge.tasks import Classification
from expunge.training import parameters
from expunge.training.engine import Engine
from expunge.training.session import Session

TASK = Classification(3)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return model, torch.randn(11, 4), torch.arange(11) % 3


def _names(model):
    return [name for name, _ in model.named_parameters()]


def _per_example(model, X, y):
    """The gradient of each example's loss, ``(N, …)`` by name."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, x, label):
        return nn.functional.cross_entropy(functional_call(model, weights, (x[None],)), label[None])

    return vmap(grad(loss), (None, 0, 0))(weights, X, y)


def test_importance_with_batches_of_one_is_the_mean_squared_gradient_of_an_example(problem):
    model, X, y = problem
    data = ArrayData({"inputs": X, "targets": y})
    measured = parameters.importance(model, data, TASK, Session(), names=_names(model), batch_size=1)
    expected = {name: g.square().mean(0) for name, g in _per_example(model, X, y).items()}
    assert all(torch.allclose(measured[name], expected[name], atol=1e-7) for name in expected)


def test_importance_of_larger_batches_squares_the_mean(problem):
    model, X, y = problem
    data = ArrayData({"inputs": X, "targets": y})
    measured = parameters.importance(model, data, TASK, Session(), names=_names(model), batch_size=4)
    for name, g in _per_example(model, X, y).items():
        expected = torch.stack([part.mean(0).square() for part in g.split(4)]).mean(0)
        assert torch.allclose(measured[name], expected, atol=1e-7)


def test_the_sum_of_gradients_is_over_batches_of_means(problem):
    model, X, y = problem
    data = ArrayData({"inputs": X, "targets": y})
    total, batches = parameters.gradient_sum(model, data, TASK, Session(), names=["0.weight"], batch_size=4)
    expected = torch.stack([g.mean(0) for g in _per_example(model, X, y)["0.weight"].split(4)]).sum(0)
    assert batches == 3
    assert list(total) == ["0.weight"]
    assert torch.allclose(total["0.weight"], expected, atol=1e-7)


def test_frozen_parameters_can_be_asked_for_and_flags_modes_and_gradients_come_back(problem):
    model, X, y = problem
    model[0].requires_grad_(False)
    model.train()
    model[1].eval()
    data = ArrayData({"inputs": X, "targets": y})
    total, _ = parameters.gradient_sum(model, data, TASK, Session(), names=["0.weight"], batch_size=4)
    assert total["0.weight"].abs().sum() > 0
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(p.grad is None for p in model.parameters())


def test_they_come_back_after_an_error_too(problem):
    model, X, _ = problem
    model[0].requires_grad_(False)
    data = ArrayData({"inputs": X, "targets": torch.full((11,), 7)})
    with pytest.raises(IndexError):
        parameters.gradient_sum(model.train(), data, TASK, Session(), names=["0.weight"], batch_size=4)
    assert model.training
    assert not model[0].weight.requires_grad


def test_a_parameter_that_the_loss_does_not_reach_has_no_importance(problem):
    model, X, y = problem
    model.register_parameter("idle", nn.Parameter(torch.ones(2)))
    data = ArrayData({"inputs": X, "targets": y})
    measured = parameters.importance(model, data, TASK, Session(), names=["idle"], batch_size=4)
    assert measured["idle"].tolist() == [0.0, 0.0]


def test_augmentation_and_accumulation_have_no_influence():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    columns = {"inputs": torch.rand(9, 1, 4, 4), "targets": torch.arange(9) % 3}
    results = [
        parameters.importance(model, data, TASK, Session(seed, engine), names=_names(model), batch_size=3)
        for data, seed, engine in (
            (ArrayData(columns), 0, Engine()),
            (ArrayData(columns, augment=CropFlip()), 1, Engine(accumulate=3)),
        )
    ]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.2, 0.5, 0.77, 1.0])
def test_the_largest_elements_are_those_that_numpy_sorts_last(fraction):
    draws = torch.Generator().manual_seed(0)
    values = {
        "a": torch.randn(7, 9, generator=draws),
        "b": torch.randn(41, generator=draws),
        "c": torch.randn(()),
    }
    masks = parameters.largest(values, fraction)
    flat = np.concatenate([value.numpy().ravel() for value in values.values()])
    expected = np.zeros(len(flat), dtype=bool)
    keep = round(fraction * len(flat))
    expected[np.argsort(flat)[len(flat) - keep :]] = True
    measured = np.concatenate([masks[name].numpy().ravel() for name in values])
    assert measured.tolist() == expected.tolist()
    assert masks["a"].shape == (7, 9)
    assert masks["a"].dtype == torch.bool


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.2, [0, 0, 1, 0, 0]),
        (0.4, [0, 1, 1, 0, 0]),
        (0.6, [0, 1, 1, 1, 0]),
        (0.8, [1, 1, 1, 1, 0]),
        (1.0, [1] * 5),
    ],
)
def test_of_ties_at_the_threshold_the_first_are_taken_until_the_fraction_is_met(fraction, expected):
    masks = parameters.largest({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 2.0, 1.0])}, fraction)
    assert torch.cat([masks["a"], masks["b"]]).int().tolist() == expected


def test_more_elements_than_quantile_takes_can_be_ranked():
    draws = torch.Generator().manual_seed(0)
    values = torch.randperm(2**24 + 8, dtype=torch.int32, generator=draws)
    mask = parameters.largest({"a": values}, 0.25)["a"]
    assert torch.equal(mask, values >= 3 * (2**22 + 2))


def test_inner_products_run_over_the_names_that_both_have():
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0])}
    second = {"a": torch.tensor([3.0, 4.0]), "c": torch.tensor([7.0])}
    assert float(parameters.inner(first, second)) == 11.0
    with pytest.raises(DataError, match="share no name"):
        parameters.inner({"a": torch.ones(1)}, {"b": torch.ones(1)})


def test_the_distance_is_euclidean_over_all_parameters():
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        for model, weight, bias in ((first, [1.0, 2.0], 3.0), (second, [1.0, 4.0], 5.0)):
            model.weight.copy_(torch.tensor([weight]))
            model.bias.fill_(bias)
    assert parameters.distance(first, second) == pytest.approx(8**0.5)
    assert parameters.distance(first, first) == 0.0


def test_shared_tensors_names_what_was_not_trained_anew():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    assert parameters.shared_tensors(first, second) == []
    with torch.no_grad():
        second.bias.copy_(first.bias)
    assert parameters.shared_tensors(first, second) == ["bias"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_a_model_with_a_weight_or_statistic_that_is_not_finite_is_refused(value, name):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    parameters.check_finite(model)
    model.state_dict()[name].view(-1)[0] = value
    with pytest.raises(CheckpointError, match=rf"the original: '{name}' holds 1 NaN or infinite"):
        parameters.check_finite(model, "the original")
