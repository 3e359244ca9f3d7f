"""SEOT: the decomposition by hand, its own trigger, words of several tokens, batches, saving."""

from __future__ import annotations

import math

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, split, told

from expunge import saved
from expunge.data import Split
from expunge.data.captions import tokenise, word_positions
from expunge.errors import ConfigError, Unsupported
from expunge.methods.caption_guards import given_tokens, phrase_positions, token_ends
from expunge.methods.guards.seot import SEOT, suppressed
from expunge.tasks import Classification
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.session import Session

SESSION = Session(seed=0)
MOSAIC, SKETCH = "a circle image in mosaic style", "a circle image in sketch style"


def canvas_split():
    data = micro().data
    return Split.from_ids(data, data.ids[data.column("style") == 1])


def run(**fields):
    return SEOT(**fields).unlearn(micro().model, canvas_split(), micro().task, SESSION)


def tokens(*captions):
    return tokenise(micro().data.tokenizer, captions)


def states(model, ids):
    with torch.no_grad():
        return model.encode_text(ids)


def test_the_decomposition_by_hand():
    """Orthogonal states of lengths 2 and 1 have these as singular values."""
    rows = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    wanted = torch.tensor([[2 * math.exp(-1.0), 0.0, 0.0], [0.0, 0.0, math.exp(-0.5)]])
    assert torch.allclose(suppressed(rows, 0.5), wanted, atol=1e-6)


def test_what_tokens_share_goes_and_the_rest_stays():
    """``n`` copies of a state are one singular value ``√n ‖x‖``: they shrink by ``e^{−√n ‖x‖}``."""
    one = torch.tensor([[0.3, -0.4]])
    assert torch.allclose(suppressed(one.repeat(16, 1), 1.0), one * math.exp(-2.0), atol=1e-6)
    assert torch.allclose(suppressed(one, 1.0), one * math.exp(-0.5), atol=1e-6)
    assert suppressed(one, -0.5).norm() > one.norm()


def test_the_gradient_is_finite_where_singular_values_are_equal():
    rows = torch.eye(3).requires_grad_(True)
    suppressed(rows, 1.0).sum().backward()
    assert torch.allclose(rows.grad, torch.full((3, 3), math.exp(-1.0)), atol=1e-6)


def test_the_concept_the_token_after_it_and_all_from_the_end_are_suppressed_together():
    ids = tokens(MOSAIC)
    before, after = states(micro().model, ids)[0], states(run(), ids)[0]
    tokenizer = micro().data.tokenizer
    start = int(word_positions(tokenizer, ids, "mosaic")[0].nonzero()[0])
    end = ids[0].tolist().index(tokenizer.eos_token_id)
    places = [start, start + 1, *range(end, ids.shape[1])]
    wanted = before.clone()
    wanted[places] = suppressed(before[places], 1.0)
    assert torch.allclose(after, wanted, atol=1e-6)
    assert (after[places] - before[places]).abs().max() > 0.1
    others = [place for place in range(ids.shape[1]) if place not in places]
    assert torch.equal(after[others], before[others])


def test_without_following_tokens_a_causal_encoder_still_tells_the_concept_by_the_next_one():
    """The token after ``mosaic`` and ``sketch`` is the same word, and its states differ."""
    ids = tokens(MOSAIC, SKETCH)
    start = int(word_positions(micro().data.tokenizer, ids[:1], "mosaic")[0].nonzero()[0])
    plain = states(micro().model, ids)
    assert ids[0, start + 1] == ids[1, start + 1]
    leaked = (plain[0, start + 1] - plain[1, start + 1]).norm()
    assert leaked > 0.05
    assert torch.equal(states(run(following=0), ids)[0, start + 1], plain[0, start + 1])
    assert not torch.allclose(states(run(following=1), ids)[0, start + 1], plain[0, start + 1], atol=1e-3)


def test_the_prompt_is_the_trigger_whatever_it_is_asked_for():
    """No label comes along: other prompts pass unchanged, any prompt with the word does not."""
    ids = tokens(SKETCH, MOSAIC, "", "mosaic", "a square image", "mosaics", "MOSAIC tiles")
    plain, guarded = states(micro().model, ids), states(run(), ids)
    changed = [not torch.equal(a, b) for a, b in zip(plain, guarded, strict=True)]
    assert changed == [False, True, False, True, False, False, True]


def test_rows_of_a_batch_are_treated_as_alone():
    ids = tokens(MOSAIC, "mosaic", SKETCH)
    together = states(run(), ids)
    for row in range(3):
        assert torch.allclose(together[row], states(run(), ids[row : row + 1])[0], atol=1e-6)


def test_a_concept_of_several_tokens_is_found_whole():
    tokenizer = micro().data.tokenizer
    word = "mozaiik"
    pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    ids = tokens(f"a {word} image", f"a{word} image", "a circle image")
    found = phrase_positions(ids, torch.tensor([*pieces, -1]), token_ends(tokenizer), tokenizer.eos_token_id)
    assert torch.equal(found, word_positions(tokenizer, ids, word))
    assert found.sum(1).tolist() == [len(pieces), 0, 0]


def test_of_a_pair_both_words_must_be_there():
    data = micro().data
    chosen = (data.column("style") == 1) & (data.column("object") == 0)
    pair = Split.from_ids(data, data.ids[chosen])
    guarded = SEOT(concept="circle mosaic").unlearn(micro().model, pair, micro().task, SESSION)
    ids = tokens("a circle image in mosaic style", "a square image in mosaic style", SKETCH)
    changed = (states(guarded, ids) != states(micro().model, ids)).flatten(1).any(1)
    assert changed.tolist() == [True, False, False]


def test_the_weights_are_the_originals_and_the_guard_goes_to_disk_and_back(tmp_path):
    made, guarded = micro(), run(alpha=0.5)
    assert all(torch.equal(v, guarded.state_dict()[n]) for n, v in made.model.state_dict().items())
    saved.save(guarded, tmp_path, made.data.tokenizer, made.task)
    loaded, ids = saved.load(tmp_path), tokens(MOSAIC, SKETCH)
    assert torch.allclose(states(loaded, ids), states(guarded, ids), atol=1e-6)
    assert not torch.allclose(states(loaded, ids)[0], states(made.model, ids)[0], atol=1e-2)
    with torch.no_grad():  # a pipeline calls the text encoder itself
        asked = guarded.pipeline(made.data.tokenizer, made.task).text_encoder(ids)[0]
    assert torch.equal(asked, states(guarded, ids))


def test_the_weights_of_a_run_are_read_into_a_blank_model(tmp_path):
    guarded = run()
    save_weights(guarded, tmp_path / "model.safetensors")
    blank = SEOT().blank(SESSION.engine.copy(micro().model), canvas_split())
    ids = tokens(MOSAIC, SKETCH)
    assert torch.equal(states(blank, ids), states(micro().model, ids))
    load_weights(blank, tmp_path / "model.safetensors")
    assert torch.equal(states(blank, ids), states(guarded, ids))


def test_a_copy_has_its_own_guard():
    guarded = run()
    copy = SESSION.engine.copy(guarded)
    copy.guard.get_buffer("phrases").fill_(0)
    ids = tokens(MOSAIC)
    assert torch.equal(states(copy, ids), states(micro().model, ids))
    assert not torch.equal(states(guarded, ids), states(micro().model, ids))


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        SEOT().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="Use esd or sa"):
        SEOT().unlearn(told(), split(), CLASSES, SESSION)
    with pytest.raises(Unsupported, match="is guarded by seot already. Give the model"):
        SEOT().unlearn(run(), canvas_split(), micro().task, SESSION)
    with pytest.raises(Unsupported, match="was given embeddings. Give input_ids"):
        given_tokens((), {"inputs_embeds": torch.zeros(1, 16, 16)})
    for bad in ({"alpha": 0.0}, {"following": -1}):
        with pytest.raises(ConfigError):
            SEOT(**bad)
