from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge import seeding
from expunge.data import ArrayData
from expunge.errors import ConfigError
from expunge.methods.optimisers.zeroth_order import ZerothOrder
from expunge.methods.scopes.fila import FILA
from expunge.methods.scopes.last_layers import LastLayers
from expunge.tasks import Regression
from expunge.training.ensemble import stacking
from expunge.training.optim import SGD
from expunge.training.parameters import distance, mean_gradient, shared_tensors
from expunge.training.recipe import Recipe, Training
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


class Line(nn.Module):
    """``w x + b``, begun at ``w = 2, b = 0.5``."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.w * x + self.b


def test_a_step_under_the_gradient_penalty_is_the_one_written_on_paper():
    """``ℓ = ½ r²`` with ``r = w x + b − y``: ``∂_w ℓ = x r``, ``∂_b ℓ = r``, penalty ``α (|x r| + |r|)``.

    For ``x = 3`` and ``y = 0.5`` the residual is 6; the penalty's gradient is ``α (x² + x, x + 1)``.
    """
    data = ArrayData({"inputs": torch.tensor([[3.0]]), "targets": torch.tensor([[0.5]])})
    training = Training(
        epochs=1, batch_size=1, optim=SGD(lr=0.001, momentum=0.0, weight_decay=0.0), gradient_penalty=0.1
    )
    task = Regression(low=-10.0, high=10.0)
    values = []
    session = Session(callbacks=(lambda event: values.append(event.values),))
    found = Recipe(Line, task, training).train(data, session)
    assert found.w.item() == pytest.approx(2.0 - 0.001 * (18 + 0.1 * 12))
    assert found.b.item() == pytest.approx(0.5 - 0.001 * (6 + 0.1 * 4))
    assert {"loss": 18.0, "gradient": pytest.approx(0.1 * 24)} in values


@pytest.mark.parametrize(("setting", "rate"), [("causal_lm", 1e-6), ("llama", 5e-4)], indirect=["setting"])
def test_the_gradient_of_the_penalty_goes_through_attention(setting, rate):
    """A small step ``η`` lowers ``J = ℓ + α Σ_t ‖∇_t ℓ‖`` by ``‖θ' − θ‖² / η``."""
    data, session, alpha = setting.split.retain, Session(seed=5), 0.3

    def objective(model):
        names = [name for name, _ in model.named_parameters()]
        found = mean_gradient(model, data, setting.task, session, names=names, batch_size=len(data))
        (batch,) = data.batches([torch.arange(len(data))], device="cpu")
        loss = setting.task.loss(setting.task.outputs(model, batch), batch).mean()
        return float(loss.detach()) + alpha * sum(float(value.norm()) for value in found.values())

    optim = SGD(lr=rate, momentum=0.0, weight_decay=0.0)
    training = Training(epochs=1, batch_size=len(data), optim=optim, gradient_penalty=alpha)
    recipe = replace(setting.recipe, training=training)
    before, after = recipe.initial(session), recipe.train(data, session)
    fall = objective(before) - objective(after)
    assert fall == pytest.approx(distance(before, after) ** 2 / rate, rel=0.03)


def test_models_with_a_penalty_are_not_stacked_and_bad_ones_are_refused():
    data = ArrayData({"inputs": torch.zeros(4, 1), "targets": torch.zeros(4, 1)})
    recipe = Recipe(Line, Regression(), Training(gradient_penalty=0.1))
    assert stacking(recipe, data, Session()) == (False, "the norms of their gradients are penalised")
    with pytest.raises(ConfigError, match=r"gradient_penalty: must not be negative, got -1"):
        Training(gradient_penalty=-1.0)
    with pytest.raises(ConfigError, match=r"gradient_penalty: needs gradients"):
        Training(gradient_penalty=0.1, optim=ZerothOrder())
