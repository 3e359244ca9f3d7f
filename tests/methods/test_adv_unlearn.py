"""AdvUnlearn: the prefix route through the text encoder, the search by hand, and the two-part objective."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, split, told
from torch import nn

from expunge.data import Split
from expunge.data.captions import tokenise
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.gradient.adv_unlearn import AdvUnlearn, Attack, encoded
from expunge.tasks import Classification, Diffusion
from expunge.training.denoisers import token_table
from expunge.training.engine import Engine
from expunge.training.loop import optimise
from expunge.training.optim import SGD
from expunge.training.session import Session

SESSION = Session(seed=0)
SMALL = {"epochs": 1, "batch_size": 6, "steps": 2, "attack_steps": 2, "optim": SGD(lr=0.1, momentum=0.0)}


def canvas_split():
    data = micro().data
    return Split.from_ids(data, data.ids[data.column("style") == 1])


def rows(*captions):
    return tokenise(micro().data.tokenizer, captions)


class OfOldTransformers(nn.Module):
    """A text encoder in the layout of transformers 4: all of it inside ``text_model``."""

    def __init__(self, encoder):
        super().__init__()
        self.text_model = encoder
        self.config = encoder.config

    def get_input_embeddings(self):
        return self.text_model.get_input_embeddings()

    def forward(self, input_ids):
        return self.text_model(input_ids)


@pytest.fixture(params=[4, 5])
def model(request):
    model = SESSION.engine.copy(micro().model)
    if request.param == 4:
        model.text_encoder = OfOldTransformers(model.text_encoder)
    return model


@torch.no_grad()
def test_a_prefix_of_real_embeddings_is_read_as_the_caption_with_those_words(model):
    """Positions, causal mask and the last norm are those of the encoder itself."""
    plain, longer = rows("a circle image"), rows("mosaic style a circle image")
    prefix = token_table(model)(longer[:, 1:3])
    assert torch.equal(encoded(model, plain, prefix), model.encode_text(longer))
    assert torch.equal(encoded(model, plain, prefix[:, :0]), model.encode_text(plain))
    assert not torch.allclose(encoded(model, plain, prefix + 1), model.encode_text(longer))
    assert torch.equal(model.encode_text(plain), micro().model.encode_text(plain))  # nothing stays behind


def test_gradients_reach_the_prefix_and_the_encoder(model):
    prefix = torch.zeros(1, 2, 16, requires_grad=True)
    table = token_table(model).weight
    found = torch.autograd.grad(
        encoded(model, rows("a circle image"), prefix).square().sum(), [prefix, table]
    )
    assert all(gradient.abs().sum() > 0 for gradient in found)


class Heard(nn.Module):
    """``f(z, t, c) = Σ of the embeddings of the caption``: one number for each example."""

    def __init__(self, values):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.tensor(values)[:, None], freeze=False)
        self.text_encoder = SimpleNamespace(get_input_embeddings=lambda: self.table)

    def encode_text(self, input_ids):
        return self.table(input_ids)

    def predict(self, noisy, timesteps, hidden):
        return hidden.sum(1)

    def forward(self, noisy, timesteps, condition):
        return self.predict(noisy, timesteps, self.encode_text(condition))


def heard():
    """Tokens: begin 0, concept 2, end 0.5 (also the padding); the original says 2 + 0.5 + 0.5 = 3."""
    original, edited = Heard([0.0, 2.0, 0.5]), Heard([0.0, 1.0, 0.5])
    task = Diffusion(timesteps=10)
    batch = {"input_ids": torch.tensor([[0, 1, 2, 2]]).repeat(2, 1), "noisy": torch.zeros(2, 1),
             "timesteps": torch.zeros(2, dtype=torch.long), "ids": torch.arange(2)}  # fmt: skip
    return Attack(original, task, Engine(device="cpu"), 0), edited, batch


def by_hand(start, steps, lr, *, accumulate):
    """Adam on ``(1 + 0.5 + δ − 3)²``, whose gradient is ``2 (δ − 1.5)``; ``accumulate`` never zeroes it."""
    delta = torch.tensor([start], requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=lr)
    delta.grad = torch.zeros(1)
    for _ in range(steps):
        new = 2 * (delta.detach() - 1.5)
        delta.grad = delta.grad + new if accumulate else new
        optimizer.step()
    return float(delta.detach())


def test_the_search_takes_steps_of_adam_on_fresh_gradients():
    """Trap of the authors' code: gradients that add up carry the search beyond what it looks for."""
    attack, edited, batch = heard()
    start = torch.tensor([[[0.0]], [[3.0]]])
    found = attack.search(edited, batch, start, 60, 0.1)
    for row, begun in enumerate((0.0, 3.0)):
        assert float(found[row]) == pytest.approx(by_hand(begun, 60, 0.1, accumulate=False), abs=1e-4)
        theirs = by_hand(begun, 60, 0.1, accumulate=True)
        assert abs(theirs - 1.5) > 5 * abs(float(found[row]) - 1.5)
    assert edited.table.weight.grad is None
    assert torch.equal(start, torch.tensor([[[0.0]], [[3.0]]]))


def test_a_search_begins_at_embeddings_of_the_original_and_depends_on_the_example_alone():
    attack, _, batch = heard()
    drawn = attack.random(batch, 3, 8)
    assert set(drawn.flatten().tolist()) == {0.0, 2.0, 0.5}  # 1.0 is the encoder's being trained
    half = {name: values[1:] for name, values in batch.items()}
    assert torch.equal(attack.random(half, 3, 8), drawn[1:])
    assert not torch.equal(attack.random(batch, 4, 8), drawn)


def test_the_search_brings_the_edited_model_nearer_to_what_the_original_draws():
    made, parts = micro(), canvas_split()
    model = SESSION.engine.copy(made.model)
    for parameter in model.text_encoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    method = AdvUnlearn(**SMALL)
    attack = method.setup(made.model, parts, made.task.unlearning(), SESSION)
    (order,) = parts.forget.fixed_order(100)
    (batch,) = parts.forget.batches([order], device="cpu")
    batch = method.drawn(model, batch, attack, 0)
    start = attack.random(batch, 0, 2)
    found = attack.search(model, batch, start, 10, 0.05)

    def away(prefix):
        with torch.no_grad():
            return float((attack.outputs(model, batch, prefix) - attack.said(batch)).square().mean())

    assert away(found) < away(start)


def seen(monkeypatch, epochs, **fields):
    """Which searches a run makes: the step and where each begins."""
    made, method, calls = micro(), AdvUnlearn(**{**SMALL, "epochs": epochs, **fields}), []

    def search(self, model, batch, start, steps, lr):
        calls.append(start)
        return start + 1

    monkeypatch.setattr(Attack, "search", search)
    method.unlearn(made.model, canvas_split(), made.task, SESSION)
    return calls


def test_no_prefix_in_the_warm_up_and_a_search_at_each_so_many_steps(monkeypatch):
    assert len(seen(monkeypatch, 5, warm_up=0.0)) == 5
    assert len(seen(monkeypatch, 5, warm_up=0.4)) == 3
    assert len(seen(monkeypatch, 5, warm_up=0.0, every=3)) == 2


def test_a_search_begins_anew_or_where_the_last_one_ended(monkeypatch):
    first, second = seen(monkeypatch, 2, warm_up=0.0, start="latest")
    ended, begun = (found.flatten(1).sum(1).sort().values for found in (first + 1, second))
    assert torch.allclose(ended, begun, atol=1e-4)  # the order of the examples is another one
    first, second = seen(monkeypatch, 2, warm_up=0.0)
    assert not torch.allclose(first.sum() + first.numel(), second.sum())


def test_the_objective_turns_from_the_concept_behind_its_prefix_and_keeps_the_rest():
    made, parts = micro(), canvas_split()
    task = made.task.unlearning()
    method = AdvUnlearn(**{**SMALL, "negative_guidance": 1.5, "retain_weight": 0.3, "warm_up": 0.0})
    plan = method.plan(made.model, parts, task, SESSION)
    terms = []

    def objective(step):
        terms.append((step.forget.batch, method.objective(step)))
        return terms[-1][1]

    optimise(made.model, replace(plan, objective=objective, epochs=2), task, SESSION)
    attack: Attack = plan.state
    (batch, first), (_, second) = terms
    assert float(first["retain"].detach()) == 0  # nothing has moved
    assert float(second["retain"].detach()) > 0
    with torch.no_grad():
        batch = method.drawn(made.model, batch, attack, 0)
        start = attack.random(batch, 0, 1)
        prefix = attack.search(made.model, batch, start, 2, 1e-3)
        own, free = (task.outputs(made.model, b) for b in (batch, task.instead(batch, "empty")))
        wanted = (attack.outputs(made.model, batch, prefix) - (free - 1.5 * (own - free))).square().mean()
    assert torch.allclose(first["forget"].detach(), wanted, rtol=1e-4)


def test_the_text_encoder_alone_moves_and_the_seed_decides():
    made = micro()
    method = AdvUnlearn(**{**SMALL, "warm_up": 0.0})
    first, again, other = (
        method.unlearn(made.model, canvas_split(), made.task, Session(seed=seed)).state_dict()
        for seed in (0, 0, 1)
    )
    moved = [name for name, value in made.model.state_dict().items() if not torch.equal(value, first[name])]
    assert moved
    assert all(name.startswith("text_encoder.") for name in moved)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_prefix_is_counted_in_tokens_and_must_leave_the_end_of_the_text():
    """``<s> a circle image in mosaic style </s>`` is 8 of 16 tokens, whatever the number of words."""
    AdvUnlearn(tokens=8).check(canvas_split(), micro().task)
    with pytest.raises(DataError, match="leaves no room for 9 more tokens, of 16. Lower tokens"):
        AdvUnlearn(tokens=9).check(canvas_split(), micro().task)


def test_what_it_cannot_run_on_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        AdvUnlearn().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="Use esd or sa for classes"):
        AdvUnlearn().check(split(), CLASSES)
    with pytest.raises(Unsupported, match="has no text encoder, so it reads no prompts.*esd, sa"):
        AdvUnlearn().unlearn(told(), canvas_split(), micro().task, SESSION)


@pytest.mark.parametrize(
    "field",
    [
        {"negative_guidance": -1.0}, {"retain_weight": -1.0}, {"tokens": 0}, {"attack_steps": 0},
        {"every": 0}, {"steps": 0}, {"attack_lr": 0.0}, {"guidance": 0.0}, {"warm_up": 1.0},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        AdvUnlearn(**field)
