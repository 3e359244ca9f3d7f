import pytest
import torch
from torch import nn

from expunge.errors import Unsupported
from expunge.tasks import Regression
from expunge.training.fresh import fresh
from expunge.training.recipe import Recipe
from expunge.training.session import Session


def test_with_a_recipe_it_is_the_model_that_training_would_start_from():
    session = Session(seed=3, recipe=Recipe(lambda: nn.Linear(4, 1), Regression()))
    found = fresh(nn.Linear(4, 1), session)
    assert torch.equal(found.weight, session.recipe.initial(session).weight)
    assert not found.training


def test_without_one_every_layer_draws_its_weights_anew_and_statistics_start_again():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), nn.Linear(8, 3))
    model(torch.randn(16, 4) + 5)
    with torch.no_grad():
        model[0][1].weight.fill_(7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = fresh(model, Session(seed=0)).state_dict()
    assert not [
        name for name, value in before.items() if torch.equal(value, found[name]) and "bias" not in name
    ]
    assert torch.equal(found["0.1.running_mean"], torch.zeros(8))
    assert torch.equal(found["0.1.weight"], torch.ones(8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_seed_decides_and_the_callers_generator_stays():
    model, state = nn.Linear(4, 3), torch.get_rng_state()
    weights = [fresh(model, Session(seed=seed)).weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_that_cannot_initialise_itself_is_named():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 3))

    with pytest.raises(Unsupported, match=r"layer '1' cannot initialise itself.*Give the recipe"):
        fresh(nn.Sequential(nn.Linear(4, 4), Bare()), Session())
