from dataclasses import replace

import pytest
import torch

from expunge import seeding
from expunge.errors import ConfigError
from expunge.methods.scopes.fila import FILA
from expunge.methods.scopes.last_layers import LastLayers
from expunge.training.ensemble import stacking
from expunge.training.parameters import distance, shared_tensors
from expunge.training.recipe import Training
from expunge.training.session import Event, Session


def test_the_same_session_trains_the_same_bytes_and_another_seed_another_model(setting):
    data = setting.split.retain
    first, again, other = (setting.recipe.train(data, Session(seed=seed)) for seed in (5, 5, 6))
    assert distance(first, again) == 0.0
    assert shared_tensors(first, other) == []


def test_training_starts_from_the_initial_model_of_the_session(setting):
    with seeding.seeded(seeding.derive(5, "initialise")):
        expected = setting.recipe.model()
    assert distance(setting.recipe.initial(Session(seed=5)), expected) == 0.0


def test_training_moves_every_tensor(setting):
    session = Session(seed=5)
    assert (
        shared_tensors(setting.recipe.train(setting.split.retain, session), setting.recipe.initial(session))
        == []
    )


def test_what_is_outside_the_scope_keeps_its_first_values_and_may_move_later(setting):
    session, data = Session(seed=5), setting.split.retain
    part = replace(setting.recipe, training=replace(setting.recipe.training, scope=LastLayers(count=1)))
    initial, trained = part.initial(session), part.train(data, session)
    moved = set(LastLayers(count=1).names(initial))
    assert 0 < len(moved) < len(list(initial.named_parameters()))
    for (name, before), after in zip(initial.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(before, after) == (name not in moved), name
        assert after.requires_grad
    assert stacking(part, data, session)[0] is False


def test_a_scope_that_reads_a_forget_set_is_refused():
    with pytest.raises(ConfigError, match=r"scope: is chosen by a forget set"):
        Training(scope=FILA())


def test_initialising_leaves_the_callers_generator_alone(setting):
    state = torch.get_rng_state()
    setting.recipe.initial(Session(seed=5))
    assert torch.equal(torch.get_rng_state(), state)


def test_children_of_a_session_have_their_own_seeds_and_the_rest_in_common(setting):
    session = setting.session
    child = session.child("retrained", 1)
    assert child.seed == seeding.derive(session.seed, "retrained", 1)
    assert child.recipe is session.recipe
    assert torch.equal(
        torch.rand(3, generator=session.generator("draws")),
        torch.rand(3, generator=seeding.generator(session.seed, "draws")),
    )


def test_every_listener_hears_every_event_in_order():
    heard = []
    session = Session(callbacks=(lambda e: heard.append((1, e.kind)), lambda e: heard.append((2, e.kind))))
    session.emit(Event("started", "x"))
    session.child("a").emit(Event("finished", "x"))
    assert heard == [(1, "started"), (2, "started"), (1, "finished"), (2, "finished")]


@pytest.mark.parametrize("field", ["epochs", "batch_size"])
def test_numbers_below_one_are_refused_by_name(field):
    with pytest.raises(ConfigError, match=f"{field}: must be at least 1, got 0"):
        Training(**{field: 0})
