import itertools

import pytest
import torch
from torch import nn

from expunge import config
from expunge.errors import ConfigError
from expunge.training.optim import SGD, AdamW, optimisers


def _factors(total, **fields):
    optim = SGD(**fields)
    return [optim.factor(index, total) for index in range(total)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "constant"}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "linear"}, [1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [1.0, 0.8535534, 0.5, 0.1464466]),
        ({"schedule": "exponential"}, [1.0, 0.3162278, 0.1, 0.0316228]),
        ({"schedule": "exponential", "decay": 0.0625}, [1.0, 0.5, 0.25, 0.125]),
        ({"schedule": "exponential", "decay": 1.0}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "multistep"}, [1.0, 1.0, 0.1, 0.01]),
        ({"schedule": "multistep", "milestones": (0.25,)}, [1.0, 0.1, 0.1, 0.1]),
    ],
)
def test_factors_of_four_steps_are_known(fields, expected):
    assert _factors(4, **fields) == pytest.approx(expected, abs=1e-6)


def test_the_warm_up_rises_evenly_to_the_full_rate():
    assert _factors(10, warmup=0.4) == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 6)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "linear"}, [1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "exponential", "decay": 0.0625}, [1.0, 0.5, 0.25, 0.125]),
    ],
)
def test_after_the_warm_up_the_schedule_starts_from_the_top(fields, expected):
    assert _factors(6, warmup=1 / 3, **fields) == pytest.approx([1 / 3, 2 / 3, *expected])


def test_a_factor_for_each_epoch_is_its_power_as_the_decay():
    gamma, epochs, steps = 0.9, 5, 3
    factors = _factors(epochs * steps, schedule="exponential", decay=gamma**epochs)
    assert factors[::steps] == pytest.approx([gamma**epoch for epoch in range(epochs)])
    assert all(later < earlier for earlier, later in itertools.pairwise(factors))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "exponential", "multistep"])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
@pytest.mark.parametrize("total", [1, 2, 97])
def test_factors_lie_above_zero_and_at_most_at_one(schedule, warmup, total):
    assert all(0 < factor <= 1 for factor in _factors(total, schedule=schedule, warmup=warmup))


def test_sgd_follows_its_formula():
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = SGD(lr=0.1, momentum=0.5, weight_decay=0.25).optimizer([parameter])
    for gradient in (1.0, 3.0):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    # v = 1 + 0.25·2 = 1.5, θ = 1.85; v = 0.5·1.5 + 3 + 0.25·1.85 = 4.2125
    assert parameter.item() == pytest.approx(1.85 - 0.42125)


def test_the_first_step_of_adamw_is_the_rate_and_the_decay_is_decoupled():
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = AdamW(lr=0.1, weight_decay=0.5).optimizer([parameter])
    parameter.grad = torch.tensor([1e-3])
    optimizer.step()
    assert parameter.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, rel=1e-4)


@pytest.mark.parametrize("name", optimisers.names())
def test_every_optimiser_descends_survives_a_round_trip_and_keeps_its_rate(name):
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    optim = config.build(optimisers, {"kind": name, "lr": 0.05})
    assert config.build(optimisers, config.dump(optim)) == optim
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = optim.optimizer([parameter])
    assert optimizer.param_groups[0]["lr"] == 0.05
    for _ in range(20):
        parameter.grad = parameter.detach().clone()
        optimizer.step()
    assert (parameter.abs() < torch.tensor([3.0, 2.0])).all()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lr": 0.0}, "lr: must be above 0, got 0.0"),
        ({"lr": float("nan")}, "lr: must be above 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay: must not be negative"),
        ({"decay": 0.0}, "decay: is a fraction of lr"),
        ({"decay": 1.5}, "decay: is a fraction of lr"),
        ({"decay": float("nan")}, "decay: is a fraction of lr"),
        ({"warmup": 1.0}, "warmup: is a fraction of all steps"),
        ({"clip": 0.0}, "clip: must be above 0"),
        ({"momentum": 1.0}, r"momentum: must be in \[0, 1\)"),
        ({"momentum": -0.1}, r"momentum: must be in \[0, 1\)"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov: needs a momentum above 0"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(fields, said):
    with pytest.raises(ConfigError, match=said):
        SGD(**fields)


def test_adamw_steps_alike_however_a_gradient_lies_in_memory() -> None:
    """A fused step that reads a transposed gradient in the order of memory moves the wrong weights."""
    start, gradient = torch.randn(3, 5), torch.randn(5, 3)
    moved = []
    for laid_out in (gradient.T, gradient.T.contiguous()):
        weight = nn.Parameter(start.clone())
        weight.grad = laid_out
        AdamW(lr=0.1).optimizer([weight]).step()
        moved.append(weight.detach())
    assert torch.equal(*moved)
    plain = nn.Parameter(start.clone())
    plain.grad = gradient.T.contiguous()
    torch.optim.AdamW([plain], lr=0.1, weight_decay=0.01, fused=False, foreach=False).step()
    torch.testing.assert_close(moved[0], plain.detach())
