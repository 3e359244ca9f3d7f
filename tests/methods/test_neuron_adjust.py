"""Neuron adjustment: the map by hand, the moments over tokens, and one draw for each neuron."""

from __future__ import annotations

import math

import pytest
import torch
from tests.methods import people
from torch import nn

from expunge.errors import ConfigError, Unsupported
from expunge.methods.guarded import guard_of
from expunge.methods.guards.neuron_adjust import GATES, NeuronAdjust, adjusted, gates
from expunge.training.session import Session

pytest.importorskip("transformers")


def learn(**fields):
    return NeuronAdjust(**fields).learn(people.original(), people.split(), people.TASK, Session(seed=1))


def moments(*values):
    return torch.tensor(values)[:, None]


def test_the_map_by_hand():
    """``μ_f = 2, σ_f = 1, μ_r = 0, σ_r = 2``: 3 goes to ``0 − 2 (3 − 2) / 1 = −2`` if the draw says so."""
    given = moments(2.0, 1.0, 0.0, 2.0)
    p_f = math.exp(-0.5) / math.sqrt(2 * math.pi)
    p_r = math.exp(-9 / 8) / (2 * math.sqrt(2 * math.pi))
    edge = p_f / (p_f + p_r)
    x = torch.tensor([[3.0]])
    assert float(adjusted(x, given, torch.tensor([[edge - 1e-4]]))) == pytest.approx(-2.0)
    assert float(adjusted(x, given, torch.tensor([[edge + 1e-4]]))) == 3.0


def test_what_looks_more_like_the_retained_stays():
    given = moments(2.0, 1.0, 0.0, 2.0)
    x = torch.tensor([[-1.0]])
    assert torch.equal(adjusted(x, given, torch.zeros(1, 1)), x)


def test_far_from_both_nothing_becomes_nan():
    assert torch.isfinite(
        adjusted(torch.tensor([[1e6]]), moments(2.0, 0.1, 0.0, 0.1), torch.zeros(1, 1))
    ).all()


def test_the_moments_are_over_tokens_that_are_no_padding_and_deviations_not_variances():
    learned = learn(fraction=1.0)
    model, split = people.original(), people.split()
    names, seen = gates(model, GATES), {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.__setitem__(name, out)
        )
        for name in names
    ]
    expected = []
    for part in (split.forget, split.retain):
        rows = people.batch(part)
        with torch.no_grad():
            model(rows["input_ids"], attention_mask=rows["attention_mask"])
        x = torch.cat([seen[name][rows["attention_mask"] == 1] for name in names], -1)
        expected += [x.mean(0), x.std(0, correction=0)]
    for handle in handles:
        handle.remove()
    place = learned["layer"] * 48 + learned["neuron"]
    torch.testing.assert_close(learned["moments"], torch.stack(expected)[:, place], atol=1e-5, rtol=1e-4)
    assert sorted(place.tolist()) == list(range(96))


def test_those_whose_means_differ_most_are_chosen():
    every, few = learn(fraction=1.0), learn(fraction=0.1)
    gap = (every["moments"][0] - every["moments"][2]).abs()
    assert len(few["layer"]) == 10
    assert (gap.diff() <= 0).all()
    assert torch.equal(few["neuron"], every["neuron"][:10])


def test_each_neuron_of_each_token_has_a_draw_of_its_own():
    """One draw for all of a batch would move all or none of the likely neurons."""
    model = NeuronAdjust(fraction=1.0).unlearn(
        people.original(), people.split(), people.TASK, Session(seed=1)
    )
    people.score(model, people.split().forget)
    drawn = guard_of(model).table.at(torch.arange(4)[None])
    assert drawn.shape == (1, 4, 96)
    assert len(drawn.unique()) > 370
    assert 0 <= float(drawn.min()) < float(drawn.max()) < 1


def test_only_the_chosen_neurons_move():
    model = NeuronAdjust(fraction=0.1).unlearn(
        people.original(), people.split(), people.TASK, Session(seed=1)
    )
    learned, seen = guard_of(model).learned(), []
    for one in (people.original(), model):
        name = "model.layers.0.mlp.gate_proj"
        handle = one.get_submodule(name).register_forward_hook(lambda _, __, out: seen.append(out.detach()))
        people.score(one, people.split().forget)
        handle.remove()
    moved = (seen[0] != seen[-1]).flatten(0, 1).any(0).nonzero()[:, 0]
    mine = learned["neuron"][learned["layer"] == 0]
    assert len(moved) > 0
    assert set(moved.tolist()) <= set(mine.tolist())


def test_another_seed_draws_otherwise():
    one, two = (
        NeuronAdjust(fraction=1.0).unlearn(people.original(), people.split(), people.TASK, Session(seed=seed))
        for seed in (1, 2)
    )
    assert not torch.equal(people.score(one, people.data()), people.score(two, people.data()))


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(
        Unsupported, match="no linear layer whose name ends with.*Give modules=…, or use key_space"
    ):
        gates(nn.Linear(2, 2), GATES)


@pytest.mark.parametrize(("field", "value"), [("fraction", 1.5), ("probes", 0), ("modules", ())])
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        NeuronAdjust(**{field: value})
