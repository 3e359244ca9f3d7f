"""The search for sets that expose a method: by hand, and against a method with a known weakness."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError, MissingEvidence
from expunge.evaluation.subject import Reading
from expunge.methods.base import Method, methods
from expunge.searches.adversarial import Adversarial, _Hunt, _squares
from expunge.searches.base import reading
from expunge.searches.class_set import ClassSet
from expunge.searches.random_set import RandomSet
from expunge.searches.units import Units
from expunge.tasks import Classification
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

TASK = Classification(2)


@pytest.fixture(scope="module")
def setting():
    """Noise with random labels, which a linear model learns by heart: 30 inputs and 60 dimensions."""
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 60, generator=draws)
    data = ArrayData({"inputs": inputs, "targets": torch.randint(2, (80,), generator=draws)})
    recipe = Recipe(lambda: nn.Linear(60, 2), TASK, Training(epochs=15, batch_size=20))
    session = Session(0, recipe=recipe)
    return data, recipe, session, recipe.train(data, session)


class Shrug(nn.Module):
    """Says that it does not know where the first input is positive, and what the model says elsewhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return torch.where(x[:, :1] > 0, torch.zeros(()), self.model(x))


@dataclass(frozen=True, kw_only=True)
class HalfBlind(Method):
    """Forgets those examples well that are positive in their first input, and the others not at all."""

    def unlearn(self, model, split, task, session):
        return Shrug(session.engine.copy(model)).eval()


def test_the_squared_distance_has_no_bias() -> None:
    confidence = torch.tensor([0.9, 0.5, 0.2])
    found = Reading(*([-torch.log(confidence)] * 2), *([confidence] * 3))
    known = {"mean": torch.tensor([0.5, 0.5, 0.5]), "error": torch.tensor([0.01, 0.01, 0.01])}
    assert _squares(found, known).tolist() == pytest.approx([0.15, -0.01, 0.08])
    draws = torch.randn(4, 20_000, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.6  # of mean .6
    known = {"mean": draws.mean(0), "error": draws.var(0) / 4}
    found = Reading(*[torch.full((20_000,), -math.log(0.9))] * 2, *[torch.full((20_000,), 0.9)] * 3)
    assert _squares(found, known).mean() == pytest.approx(0.3**2, abs=0.002)  # 0.1 with the bias


def test_the_reference_is_of_models_that_did_not_see_the_example(setting) -> None:
    data, _, session, original = setting
    known = Adversarial(models=8, fraction=0.5).prepare(data, TASK, session)
    inside = reading(original, data, TASK, session).confidence.double()
    assert inside.mean() > 0.9  # learnt by heart
    assert known["mean"].mean() == pytest.approx(0.5, abs=0.06)  # nobody else can know random labels
    assert (known["error"] > 0).all()


def test_exposure_counts_headroom_as_at_least_that_of_random_sets() -> None:
    data = ArrayData({"inputs": torch.zeros(4, 1), "targets": torch.tensor([0, 0, 1, 1])})
    units = Units.read(data, TASK, "example")
    headroom = torch.tensor([0.0, 0.0, 0.32, 0.32]).double()
    hunt = _Hunt(units, 2, torch.zeros(4, 1, dtype=torch.float64), headroom)
    assert hunt.floor == pytest.approx(0.16 * 1.2**2)
    hunt.learn(torch.tensor([2, 3]), torch.tensor([[0.02, 0.06], [0.1, 0.22]]).double())  # D .2 and .4
    hunt.learn(torch.tensor([0, 1]), torch.tensor([[0.01, 0.01]]).double())
    assert [tried.exposure for tried in hunt.tried] == pytest.approx([0.3 / 0.32**0.5, 0.1 / 0.48])
    assert [tried.headroom for tried in hunt.tried] == pytest.approx([0.32**0.5, 0.0])


def test_units_of_several_examples_count_by_their_examples() -> None:
    subjects = torch.tensor([7, 7, 7, 8, 9])
    data = ArrayData({"inputs": torch.zeros(5, 1), "targets": torch.zeros(5).long(), "subjects": subjects})
    units = Units.read(data, TASK, "subject")
    hunt = _Hunt(units, 2, torch.zeros(5, 1, dtype=torch.float64), torch.full((5,), 0.25).double())
    hunt.learn(torch.tensor([1, 0]), torch.tensor([[0.3, 0.3, 0.3, 0.7]]).double())
    assert hunt.tried[0].exposure == pytest.approx(0.4**0.5 / 0.6)
    assert (hunt.sums / hunt.counts)[:2].tolist() == pytest.approx([0.3, 0.7])


def blank() -> nn.Module:
    """A model that gives both classes one half."""
    model = nn.Linear(60, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def test_it_finds_what_a_method_is_blind_for_and_random_sets_do_not(setting) -> None:
    data, _, session, original = setting
    search = Adversarial(size=16, methods=(HalfBlind(),), models=8, fraction=0.5, rounds=3)
    known = {
        "mean": torch.full((80,), 0.5).double(),
        "error": torch.zeros(80).double(),
        "variance": torch.zeros(80).double(),
    }
    unsure = Recipe(blank, TASK, Training(epochs=1, optim=SGD(lr=1e-9)))  # as the reference has it
    session = replace(session, recipe=unsure, prepared=known)
    found = search.search(original, data, TASK, session)
    blind = (data.subset(found.ids).column("inputs")[:, 0] <= 0).double().mean()
    usual = [
        (
            data.subset(RandomSet(size=16).search(original, data, TASK, Session(s)).ids).column("inputs")[
                :, 0
            ]
            <= 0
        )
        for s in range(5)
    ]
    assert blind >= 0.85
    assert max(one.double().mean() for one in usual) < blind
    tried = found.details["exposure of each set tried"]
    assert len(tried) == 4 + 2 + 3 * 3
    assert max(tried[6:]) > max(tried[:6])
    assert found.details["exposure"] > 0


def test_what_was_prepared_is_used_and_the_result_is_the_same(setting) -> None:
    data, _, session, original = setting
    search = Adversarial(size=10, models=8, fraction=0.5, rounds=1)
    known = search.prepare(data, TASK, session)
    first = search.search(original, data, TASK, session)
    again = search.search(original, data, TASK, replace(session, prepared=known))
    assert torch.equal(first.ids, again.ids)
    other = {name: value.flip(0) for name, value in known.items()}
    assert not torch.equal(
        first.ids, search.search(original, data, TASK, replace(session, prepared=other)).ids
    )


def test_bad_input(setting) -> None:
    data, _, _, original = setting
    with pytest.raises(MissingEvidence, match="needs the recipe"):
        Adversarial().search(original, data, TASK, Session(0))
    with pytest.raises(DataError, match="leaves nothing to keep"):
        Adversarial(size=80).check(data, TASK)
    with pytest.raises(ConfigError, match="left out by at least 2 models"):
        Adversarial(models=4, fraction=0.75)
    with pytest.raises(ConfigError, match="at least one method"):
        Adversarial(methods=())
    with pytest.raises(ConfigError, match="sets: must be at least 1"):
        Adversarial(sets=0)
    with pytest.raises(ConfigError, match="take searches that have a size"):
        Adversarial(starts=(ClassSet(classes=(0,)),))
    whole = next(name for name in methods.names() if methods.get(name).forgets == "classes")
    with pytest.raises(ConfigError, match="Set unit=class"):
        Adversarial(methods=(methods.get(whole)(),)).check(data, TASK)
