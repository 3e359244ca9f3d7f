import pytest
import torch
from torch import nn

from expunge.errors import Unsupported
from expunge.training import features


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
