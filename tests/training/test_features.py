import pytest
import torch
from torch import nn

from expunge import config
from expunge.data import ArrayData
from expunge.errors import Unsupported
from expunge.tasks import Classification
from expunge.training import features
from expunge.training.models import models
from expunge.training.session import Session


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def test_by_default_the_input_of_the_last_linear_layer_is_captured_once_a_pass(model):
    first, second = torch.randn(6, 4), torch.randn(2, 4)
    with features.captured(model) as found:
        model(first)
        model(second)
    model(first)
    assert len(found) == 2
    assert torch.equal(found[0], model[1](model[0](first)))
    assert not found[0].requires_grad
    assert features.flat(found).shape == (8, 5)


def test_a_module_can_be_named(model):
    x = torch.randn(6, 4)
    with features.captured(model, "0") as found:
        model(x)
    assert torch.equal(found[0], x)


def test_steering_adds_to_the_output_inside_the_block_alone(model):
    x, shift = torch.randn(6, 4), torch.ones(5)
    plain = model(x)
    with features.steered(model, "1", shift):
        steered = model(x)
    assert torch.allclose(steered, model[2](model[1](model[0](x)) + shift))
    assert torch.equal(model(x), plain)


def test_hooks_are_removed_after_an_error(model):
    with pytest.raises(RuntimeError), features.captured(model) as found:
        model(torch.randn(6, 9))
    model(torch.randn(6, 4))
    assert found == []


def test_positions_of_a_sequence_are_averaged_and_images_flattened():
    assert features.flat([torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])]).tolist() == [[2.0, 4.0]]
    assert features.flat([torch.zeros(2, 3, 4, 5)]).shape == (2, 60)


def test_an_unknown_module_is_named_with_its_nearest():
    model = nn.ModuleDict({"head": nn.Linear(1, 1)})
    with (
        pytest.raises(Unsupported, match=r"no module 'haed'\. Did you mean 'head'\?"),
        features.captured(model, "haed"),
    ):
        pass


def test_without_a_linear_layer_one_must_be_named():
    with pytest.raises(Unsupported, match="no linear layer; name the module"), features.captured(nn.ReLU()):
        pass


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({"kind": "mlp", "inputs": 4, "outputs": 2, "hidden": (5,)}, ("head",)),
        (
            {"kind": "mlp", "inputs": 4, "outputs": 2, "hidden": (5,) * 5},
            ("body.2", "body.4", "body.6", "head"),
        ),
        ({"kind": "small_cnn", "classes": 2, "width": 2}, ("body.3", "body.6", "head")),
        (
            {"kind": "resnet20", "classes": 2},
            ("stages.0.0.conv1", "stages.1.0.conv1", "stages.2.0.conv1", "head"),
        ),
        (
            {"kind": "tiny_lm", "vocabulary": 7, "width": 8, "layers": 3, "heads": 2, "context": 4},
            ("blocks.0.project", "blocks.1.attention", "blocks.2.attention", "head"),
        ),
        (
            {"kind": "tiny_denoiser", "inputs": 4, "conditions": 3, "width": 8, "layers": 2},
            ("time", "body.0.linear", "body.1.linear", "head"),
        ),
    ],
)
def test_depths_are_evenly_spaced_and_end_with_the_penultimate(kind, expected):
    assert features.depths(config.build(models, kind)()) == expected


def test_watched_shows_several_modules_inputs_at_once_with_channels_last():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 2 * 2, 5))
    x = torch.randn(7, 1, 6, 6)
    with features.watched(model, ("1", "3")) as found:
        model(x)
    assert torch.equal(found["1"], model[0](x).movedim(1, -1))
    assert torch.equal(found["3"], model[2](model[1](model[0](x))))
    model(x[:2])
    assert len(found["1"]) == 7


def test_pooling_averages_pixels_and_positions_but_no_padding():
    maps = torch.arange(24.0).view(2, 3, 2, 2)
    assert torch.equal(features.pooled(maps.movedim(1, -1)), maps.mean((2, 3)))
    words = torch.tensor([[[2.0], [4.0], [90.0]]])
    assert features.pooled(words, torch.tensor([[1, 1, 0]])).tolist() == [[3.0]]
    assert features.pooled(words).tolist() == [[32.0]]


def test_sampled_rows_are_all_or_the_same_seeded_choice():
    assert features.sampled(5, 10).tolist() == [0, 1, 2, 3, 4]
    rows = features.sampled(1000, 20)
    assert len(rows.unique()) == 20
    assert torch.equal(rows, features.sampled(1000, 20))


def test_watched_activations_can_stay_in_the_graph(model):
    x = torch.randn(6, 4)
    with features.watched(model, ["2"], gradient=True) as found:
        model(x)
    (gradient,) = torch.autograd.grad(found["2"].sum(), model[0].weight)
    (expected,) = torch.autograd.grad(model[1](model[0](x)).sum(), model[0].weight)
    assert torch.equal(gradient, expected)
    with features.watched(model, ["2"]) as found:
        model(x)
    assert not found["2"].requires_grad


def test_what_is_captured_carries_a_gradient_where_it_is_asked_for(model):
    x = torch.randn(6, 4)
    with features.captured(model, gradient=True) as found:
        model(x)
    found[0].sum().backward()
    assert torch.allclose(model[0].bias.grad, (model[0](x) > 0).sum(0).float())
    assert model[2].weight.grad is None


def test_penultimate_rows_are_in_the_order_of_the_ids_and_leave_the_model_as_it_was(model):
    x = torch.randn(7, 4)
    data = ArrayData({"inputs": x}).subset([5, 0, 3])
    model.train()
    rows = features.penultimate(model, data, Classification(3), Session(), batch_size=2)
    assert torch.allclose(rows, model[1](model[0](x[[5, 0, 3]])))
    assert not rows.requires_grad
    assert model.training
