import pytest
import torch

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError
from expunge.methods.edits.iau import IAU
from expunge.training.parameters import distance


def test_it_is_the_first_step_of_a_fresh_adam_on_all_data_at_once(linear):
    X, y = linear.retain
    weight = linear.start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=0.01)
    loss = 0.5 * (X @ weight - y[:, 0]).square().mean()
    X, y = linear.forget
    (loss - 0.5 * (X @ weight - y[:, 0]).square().mean()).backward()
    optimizer.step()
    assert torch.allclose(linear.run(IAU(lr=0.01)), weight.detach(), atol=1e-7)


def test_every_weight_moves_by_the_learning_rate_against_the_sign(linear):
    g = linear.gradient(linear.start, "retain") - linear.gradient(linear.start, "forget")
    moved = linear.run(IAU(lr=0.01, batch_size=4)) - linear.start
    assert torch.allclose(moved, -0.01 * g.sign(), atol=1e-6)


def test_the_plain_rule_is_one_step_of_gradient_descent(linear):
    g = linear.gradient(linear.start, "retain") - linear.gradient(linear.start, "forget")
    measured = linear.run(IAU(lr=0.1, rule="gradient", batch_size=5))  # 14 and 6 examples: uneven batches
    assert torch.allclose(measured, linear.start - 0.1 * g, atol=1e-6)


def test_a_weight_without_gradient_stays(linear):
    X, y = torch.randn(8, 3), torch.randn(8, 1)
    X[:, 1] = 0
    result = IAU(lr=0.5).unlearn(linear.model, Split.from_ids((X, y), [0, 1]), linear.task, linear.session)
    moved = result.weight.detach()[0] - linear.start
    assert moved[1] == 0.0
    assert moved.abs()[[0, 2]].tolist() == pytest.approx([0.5, 0.5])


def test_the_number_of_examples_to_forget_does_not_matter(linear):
    X, y = (torch.cat([first] * 3) for first in linear.forget)
    thrice = Split(ArrayData({"inputs": X, "targets": y}), linear.split.retain)
    for rule in ("adam", "gradient"):
        once = linear.run(IAU(lr=0.01, rule=rule))
        result = IAU(lr=0.01, rule=rule).unlearn(linear.model, thrice, linear.task, linear.session)
        assert torch.allclose(result.weight.detach()[0], once, atol=1e-6)


def test_the_step_is_the_rate_whatever_the_size_of_the_loss(setting):
    result = IAU(lr=1e-3).unlearn(setting.original, setting.split, setting.task, setting.session)
    count = sum(p.numel() for p in setting.original.parameters())
    assert distance(result, setting.original) <= 1.001e-3 * count**0.5
    assert distance(result, setting.original) > 0.7e-3 * count**0.5


@pytest.mark.parametrize("fields", [{"lr": 0.0}, {"batch_size": 0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        IAU(**fields)
