from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import Unsupported
from expunge.methods.gradient.eu_k import EUK
from expunge.methods.scopes.last_layers import LastLayers
from expunge.methods.scopes.lora import LoRA
from expunge.tasks import Classification
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe
from expunge.training.session import Session

STILL = SGD(lr=1e-12, momentum=0.0)
"""Steps too small to move a float32 weight."""


def _run(method, setting, session=None):
    return method.unlearn(setting.original, setting.split, setting.task, session or setting.session)


def _recipe(linear):
    return Recipe(lambda: nn.Linear(3, 1, bias=False), linear.task)


def test_one_reset_then_momentum_over_all_epochs(linear):
    """Resetting at every epoch, or dropping the momentum, ends elsewhere (the worst-case-sets code)."""
    session = Session(seed=4, recipe=_recipe(linear))
    first = session.recipe.initial(session.child("eu_k")).weight.detach()[0]
    ends = {}
    for trap in ("none", "reset", "optimiser"):
        weight, velocity = first, torch.zeros(3)
        for _ in range(4):
            if trap == "reset":
                weight = first
            velocity = (0.0 if trap == "optimiser" else 0.9) * velocity + linear.gradient(weight, "retain")
            weight = weight - 0.05 * velocity
        ends[trap] = weight
    result = linear.run(EUK(epochs=4, optim=SGD(lr=0.05, momentum=0.9)), session)
    assert torch.allclose(result, ends["none"], atol=1e-6)
    assert all(float((result - ends[trap]).norm()) > 0.05 for trap in ("reset", "optimiser"))


def test_with_every_layer_new_it_is_a_retraining_that_knows_nothing_of_the_original(linear):
    X, y = linear.retain
    least_squares = torch.linalg.lstsq(X, y).solution[:, 0]
    method, session = EUK(epochs=300, optim=SGD(lr=0.1)), Session(recipe=_recipe(linear))
    result = linear.run(method, session)
    assert torch.allclose(result, least_squares, atol=1e-4)
    with torch.no_grad():
        linear.model.weight.mul_(-3)
    assert torch.equal(linear.run(method, session), result)


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_the_last_layers_are_those_of_a_new_model_and_the_rest_keeps_every_bit(setting):
    method = EUK(epochs=1, batch_size=64, optim=STILL, scope=LastLayers(count=2))
    result, before = _run(method, setting).state_dict(), setting.original.state_dict()
    new = setting.recipe.initial(setting.session.child("eu_k")).state_dict()
    of_original = setting.recipe.initial(Session(seed=0)).state_dict()
    for name in before:
        if not name.startswith(("body.6", "body.7", "head")):
            assert torch.equal(result[name], before[name]), name
        elif name in ("body.6.weight", "head.weight", "head.bias"):
            assert torch.equal(result[name], new[name]), name
            assert not torch.equal(result[name], of_original[name])  # not what the original began with
            assert not torch.equal(result[name], before[name])


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_batch_norm_between_new_layers_starts_its_statistics_anew(setting):
    method = EUK(epochs=1, batch_size=64, optim=STILL, mode="eval", scope=LastLayers(count=2))
    result = _run(method, setting).state_dict()
    assert torch.equal(result["body.7.running_mean"], torch.zeros_like(result["body.7.running_mean"]))
    assert torch.equal(result["body.7.running_var"], torch.ones_like(result["body.7.running_var"]))
    assert int(result["body.7.num_batches_tracked"]) == 0
    assert (setting.original.state_dict()["body.7.running_mean"] != 0).all()
    kept = setting.original.state_dict()["body.4.running_mean"]
    assert torch.equal(result["body.4.running_mean"], kept)


def _wide():
    torch.manual_seed(0)
    X, y = torch.randn(30, 400), torch.arange(30) % 3
    return (
        nn.Linear(400, 3),
        Split.from_ids(ArrayData({"inputs": X, "targets": y}), range(6)),
        Classification(3),
    )


@pytest.mark.parametrize("recipe", [None, Recipe(lambda: nn.Linear(400, 3), Classification(3))])
def test_new_weights_are_drawn_as_the_layer_draws_them_not_from_a_unit_normal(recipe):
    """``N(0, 1)``, as in the worst-case-sets code, is 35 times as wide here."""
    model, split, task = _wide()
    method = EUK(epochs=1, optim=STILL)
    weight = method.unlearn(model, split, task, Session(seed=3, recipe=recipe)).weight.detach()
    assert float(weight.abs().max()) <= 400**-0.5
    assert float(weight.std()) == pytest.approx(400**-0.5 / 3**0.5, rel=0.1)
    assert not torch.equal(weight, model.weight)


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_without_a_recipe_each_layer_resets_itself_by_the_seed(setting):
    method = EUK(epochs=1, batch_size=64, optim=STILL)
    one, again, other = (
        _run(method, setting, Session(seed=seed)).state_dict()["head.weight"] for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


class Scaled(nn.Module):
    """A layer that cannot reset itself."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1))

    def forward(self, x):
        return x @ self.weight


def test_a_layer_that_cannot_reset_itself_needs_the_recipe(linear):
    model = nn.Sequential(Scaled())
    arguments = (model, linear.split, linear.task)
    with pytest.raises(Unsupported, match="layer '0' cannot initialise itself.* Give the recipe"):
        EUK().unlearn(*arguments, Session())
    recipe = Recipe(lambda: nn.Sequential(Scaled()), linear.task)
    result = EUK(epochs=1, optim=STILL).unlearn(*arguments, Session(recipe=recipe))
    assert torch.equal(result[0].weight, torch.ones(3, 1))


def test_the_recipe_of_another_model_is_refused(linear):
    recipe = replace(_recipe(linear), model=lambda: nn.Linear(4, 1, bias=False))
    with pytest.raises(Unsupported, match=r"builds no 'weight' of shape \(1, 3\). Give the recipe that"):
        linear.run(EUK(), Session(recipe=recipe))


def test_a_scope_that_adds_parameters_is_refused(linear):
    with pytest.raises(Unsupported, match="LoRA adds parameters.*Choose another"):
        linear.run(EUK(scope=LoRA()))
