"""ULD: the difference of logits by hand, and the traps of offsets, of the filter and of padding."""

from __future__ import annotations

import math

import pytest
import torch
from tests.methods import people

from expunge.errors import ConfigError
from expunge.methods.adapters import linear_layers
from expunge.methods.guards.uld import ULD, Difference, from_uniform
from expunge.training.engine import Engine
from expunge.training.session import Session
from expunge.training.step import Original, View

pytest.importorskip("transformers")


def combined(target, assistant, **fields):
    method = ULD(**fields)
    return Difference(method, {}).combined(torch.tensor(target), torch.tensor(assistant))


def test_the_difference_by_hand():
    """``ρ = e⁻²``: the third token is not plausible and stays; the assistant's mean is 1."""
    found = combined([4.0, 3.0, 1.0], [4.0, -1.0, 0.0], weight=-0.5, plausible=math.exp(-2))
    assert found.tolist() == pytest.approx([4.0 - 0.5 * 3, 3.0 + 0.5 * 2, 1.0])


def test_an_assistant_that_is_uniform_changes_nothing_whatever_its_offset():
    """Uncentred, ``w · 10`` would put the plausible tokens below the others: ``4 − 8 < 1``."""
    target = [4.0, 3.0, 1.0]
    assert combined(target, [10.0, 10.0, 10.0], plausible=math.exp(-2)).tolist() == target
    assert 4.0 - 0.8 * 10 < 1.0


def test_a_token_on_the_edge_of_the_filter_is_plausible():
    found = combined([0.0, math.log(0.25), -5.0], [3.0, 0.0, -3.0], weight=-1.0, plausible=0.25)
    assert found.tolist() == pytest.approx([-3.0, math.log(0.25), -5.0])


def view(model, part):
    original = Original(model, people.TASK, Engine(), {"forget": part})
    return View("forget", people.batch(part), model, original, people.TASK, Engine(), None)


def test_the_uniform_term_is_over_labels_alone():
    """``KL(U ‖ p) = −log V − mean_v log p_v`` at each label; prompt and padding do not count."""
    model, part = people.original(), people.split().forget
    with torch.no_grad():
        found = from_uniform(view(model, part))
    rows = people.batch(part)
    logits = model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits.detach()
    size = logits.shape[-1]
    uniform = torch.full((size,), 1 / size)
    by_hand = [
        float((uniform * (uniform.log() - logits[n, t].log_softmax(-1))).sum())
        for n, t in (rows["labels"][:, 1:] != -100).nonzero().tolist()
    ]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-5)
    assert len(by_hand) == 3 * 4


def test_the_assistant_has_the_first_blocks_only_and_learns_both_terms():
    method = ULD(blocks=1, rank=4, alpha=8.0, epochs=40, batch_size=8)
    learned = method.learn(people.original(), people.split(), people.TASK, Session(seed=1))
    layers = {name.split(".", 1)[1] for name in learned}
    assert layers == {name for name in linear_layers(people.original()) if ".layers.0." in name}
    assert all(value.shape[0 if name[0] == "A" else 1] == 4 for name, value in learned.items())
    assert any(value.abs().max() > 0 for name, value in learned.items() if name[0] == "B")
    assert len(people.original().model.layers) == people.original().config.num_hidden_layers == 2


def test_more_blocks_than_there_are_is_all_of_them():
    learned = ULD(blocks=9, rank=2, epochs=1).learn(people.original(), people.split(), people.TASK, Session())
    assert {name.split(".", 1)[1] for name in learned} == set(linear_layers(people.original()))


def test_other_answers_of_the_data_may_be_forgotten_or_remembered():
    """A perturbed answer is one on which the assistant is to be uniform; it changes what is learnt."""
    plain = ULD(blocks=1, rank=2, epochs=2)
    runs = [
        plain,
        ULD(blocks=1, rank=2, epochs=2, forgotten=("idk",)),
        ULD(blocks=1, rank=2, epochs=2, remembered=("idk",)),
    ]
    found = [run.learn(people.original(), people.split(), people.TASK, Session()) for run in runs]
    name = next(name for name in found[0] if name[0] == "B")
    assert not torch.equal(found[0][name], found[1][name])
    assert not torch.equal(found[0][name], found[2][name])


def test_the_assistant_shares_the_models_cache_and_so_follows_its_beams():
    from transformers import DynamicCache

    method = ULD(blocks=1, rank=2, epochs=1)
    model = method.unlearn(people.original(), people.split(), people.TASK, Session())
    cache, ids = DynamicCache(config=model.config), people.batch(people.split().forget)["input_ids"][:, :4]
    with torch.no_grad():
        model(ids, past_key_values=cache)
    assert [layer.get_seq_length() for layer in cache.layers] == [4, 4, 4]
    keys = cache.layers[2].keys.clone()
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    assert torch.equal(cache.layers[2].keys, keys[[2, 0, 1]])


@pytest.mark.parametrize(
    ("field", "value"),
    [("blocks", 0), ("rank", 0), ("alpha", 0.0), ("epochs", 0), ("batch_size", 0), ("uniform", -1.0),
     ("weight", 0.5), ("plausible", 0.0), ("plausible", 1.5)],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ULD(**{field: value})
