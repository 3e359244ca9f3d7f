import pytest
import torch
from torch import nn

from expunge.errors import ConfigError, Unsupported
from expunge.methods.scopes.last_layers import LastLayers
from expunge.methods.scopes.modules import Modules
from expunge.training.scope import Everything


@pytest.fixture
def model():
    return nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False), nn.LayerNorm(2), nn.ReLU()
    )


class Tied(nn.Module):
    """A head whose matrix is the embedding's, as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.tokens.weight


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["2.weight", "3.weight", "3.bias"]),
        (2, ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "3.weight", "3.bias"]),
    ],
)
def test_the_last_layers_are_counted_by_weight_matrices_and_take_their_norms_along(model, count, expected):
    assert LastLayers(count=count).names(model) == expected


def test_more_layers_than_there_are_is_unsupported(model):
    with pytest.raises(Unsupported, match="the last 3 layers of a model that has 2"):
        LastLayers(count=3).names(model)


def test_frozen_last_layers_are_unsupported(model):
    model[2].requires_grad_(False)
    model[3].requires_grad_(False)
    with pytest.raises(Unsupported, match="no parameter of the last 1 layers requires a gradient"):
        LastLayers().names(model)


def test_a_tied_matrix_goes_by_the_name_that_the_model_gives_it():
    scope, model = LastLayers(), Tied()
    assert scope.names(model) == ["tokens.weight"]
    scope.enter(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["tokens.weight"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("0",), ["0.weight", "0.bias"]),
        (("0.bias",), ["0.bias"]),
        (("*.bias",), ["0.bias", "1.bias", "3.bias"]),
        (("3", "0.weight"), ["0.weight", "3.weight", "3.bias"]),
        (("[01].weight",), ["0.weight", "1.weight"]),
    ],
)
def test_patterns_choose_parameters_in_the_models_order(model, patterns, expected):
    assert Modules(patterns=patterns).names(model) == expected


def test_a_name_without_wildcard_is_a_whole_component():
    model = nn.ModuleDict({"layer1": nn.Linear(1, 1), "layer10": nn.Linear(1, 1)})
    assert Modules(patterns=("layer1",)).names(model) == ["layer1.weight", "layer1.bias"]


def test_a_pattern_that_matches_nothing_is_named_beside_what_there_is(model):
    with pytest.raises(
        Unsupported, match="no parameter matches 'haed'. The model's begin with: 0.weight, 0.bias"
    ):
        Modules(patterns=("0", "haed")).names(model)


def test_everything_is_what_required_a_gradient(model):
    model[0].requires_grad_(False)
    names = Everything().names(model)
    assert names == ["1.weight", "1.bias", "2.weight", "3.weight", "3.bias"]
    with pytest.raises(Unsupported, match="nothing could move"):
        Everything().names(model.requires_grad_(False))


@pytest.mark.parametrize("scope", [Everything(), LastLayers(), Modules(patterns=("2",))])
def test_entering_leaves_exactly_the_names_trainable(model, scope):
    names = scope.names(model)
    entered = scope.enter(model)
    assert [name for name, p in entered.named_parameters() if p.requires_grad] == names
    assert scope.leave(entered) is entered


def test_choosing_changes_no_value(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    LastLayers().enter(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_empty_choices_are_refused():
    with pytest.raises(ConfigError, match="count: must be at least 1"):
        LastLayers(count=0)
    with pytest.raises(ConfigError, match="patterns: give at least one pattern"):
        Modules(patterns=())
