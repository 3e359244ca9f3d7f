import pytest
import torch
from torch import nn

from expunge.errors import ConfigError
from expunge.training.moving_average import MovingAverage
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session


def test_the_average_by_hand():
    """Weights 1, 2, 3: ``a_1 = 1``; ``d_2 = 3 / 12``, ``a_2 = 1.75``; ``d_3 = min(0.3, 4 / 13) = 0.3``."""
    model, average = nn.Linear(1, 1, bias=False), MovingAverage(0.3)
    for step in (1, 2, 3):
        nn.init.constant_(model.weight, step)
        assert average(model, step) is False
    assert average.written(model).weight.item() == pytest.approx(0.3 * 1.75 + 0.7 * 3)


def test_frozen_parameters_stay_and_buffers_are_averaged():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    model[0].requires_grad_(False)
    kept, average = model[0].weight.clone(), MovingAverage(0.5)
    for step in (1, 2):
        model[1].running_mean.fill_(step)
        average(model, step)
    model[0].weight.data.zero_().add_(kept)
    average.written(model)
    assert torch.equal(model[0].weight, kept)
    assert float(model[1].running_mean) == pytest.approx(0.25 * 1 + 0.75 * 2)


@pytest.mark.parametrize("setting", ["diffusion"], indirect=True)
def test_a_recipe_returns_the_average_of_the_same_run(setting):
    training = Training(epochs=2, batch_size=8, optim=setting.recipe.training.optim)
    data, steps = setting.split.retain, []

    def train(ema):
        given = Training(epochs=2, batch_size=8, optim=training.optim, ema=ema)
        return Recipe(setting.recipe.model, setting.task, given).train(data, Session(seed=3))

    last, averaged, again, short = train(None), train(0.9), train(0.9), train(1e-9)
    for a, b, c, d in zip(*(m.parameters() for m in (last, averaged, again, short)), strict=True):
        assert torch.equal(b, c)
        assert torch.allclose(a, d, atol=1e-6)  # a decay of nearly 0 is the last step's weights
        steps.append(not torch.equal(a, b))
    assert any(steps)


@pytest.mark.parametrize("ema", [0.0, 1.0, -0.5])
def test_a_decay_out_of_range_is_refused(ema):
    with pytest.raises(ConfigError, match="ema: is a decay between 0 and 1"):
        Training(ema=ema)
