import pytest
import torch
from torch import nn

from expunge.errors import Unsupported
from expunge.training.slices import Slices


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def test_the_function_and_the_names_are_the_same_on_entering_and_after_leaving(model):
    x = torch.randn(6, 4)
    expected, names = model(x), [name for name, _ in model.named_parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model[0].weight
    scope = Slices({"0.weight": (1, [2]), "2.weight": (0, [0, 2])}, ("2.bias",))
    entered = scope.enter(model)
    assert torch.equal(entered(x), expected)
    trained = {name: tuple(p.shape) for name, p in entered.named_parameters() if p.requires_grad}
    assert trained == {"0.weight_part": (5, 1), "2.weight_part": (2, 5), "2.bias": (3,)}
    left = scope.leave(entered)
    assert left[0].weight is weight
    assert "weight" not in left[0].__dict__
    assert [name for name, _ in left.named_parameters()] == names
    assert list(left.state_dict()) == list(state)
    assert all(torch.equal(left.state_dict()[name], value) for name, value in state.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in left.modules())


def test_the_gradient_of_a_part_is_that_part_of_the_gradient(model):
    x = torch.randn(6, 4)
    model(x).square().sum().backward()
    expected = model[0].weight.grad[:, [1, 3]].clone()
    entered = Slices({"0.weight": (1, [1, 3])}).enter(model)
    (found,) = torch.autograd.grad(entered(x).square().sum(), [entered[0].weight_part])
    assert torch.allclose(found, expected)


def test_decay_and_momentum_reach_the_part_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scope = Slices({"0.weight": (1, [2])})
    entered = scope.enter(model)
    parameters = [p for p in entered.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.2, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        entered(torch.randn(6, 4)).sum().backward()
        optimizer.step()
    after = scope.leave(entered).state_dict()
    changed = after["0.weight"] != before["0.weight"]
    assert changed[:, 2].all()
    assert int(changed.sum()) == 5
    assert all(torch.equal(after[name], before[name]) for name in before if name != "0.weight")


def test_after_an_error_in_the_forward_pass_the_next_one_is_right(model):
    entered = Slices({"0.weight": (0, [0])}).enter(model)
    with pytest.raises(RuntimeError):
        entered(torch.randn(6, 7))
    assert not entered[0].weight.requires_grad
    assert entered(torch.randn(6, 4)).shape == (6, 3)


def test_it_names_no_parameters(model):
    with pytest.raises(Unsupported, match="parts of parameters.*Choose another"):
        Slices({"0.weight": (0, [0])}).names(model)
