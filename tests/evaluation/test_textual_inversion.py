"""Textual inversion: a new word is learnt where the denoiser still listens, and nowhere else."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.evaluation.micro import sound
from tests.evaluation.vaults import JUDGE, READ, Vault, data, erased, evidence, ignorant, rows

from expunge.errors import ConfigError
from expunge.evaluation import gallery as galleries
from expunge.evaluation.attacks.cases import found_cases
from expunge.evaluation.attacks.textual_inversion import TextualInversion, _Fit, _named
from expunge.evaluation.gallery import Gallery

ATTACK = TextualInversion(images=4, steps=(1, 40), batch_size=4, **READ)


def test_a_word_is_learnt_for_a_model_that_has_none_and_not_for_one_that_does_not_listen() -> None:
    lost = Vault({})  # no word of the vocabulary opens it
    state = copy.deepcopy(lost.state_dict())
    score = ATTACK(evidence(lost, [ignorant()]))
    sound(score)
    assert score.details["curve"] == [[0.0, 0.0], [1.0, 0.0], [40.0, 1.0]]
    assert score.details["retrained_curve"] == [[0.0, 0.0], [1.0, 0.0], [40.0, 0.0]]
    assert score.details["excess"]["value"] == 1.0
    assert all(torch.equal(value, state[name]) for name, value in lost.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in lost.parameters())
    assert ATTACK(evidence(Vault({}), [ignorant()])).to_json() == score.to_json()


def test_the_vector_is_the_one_that_the_images_ask_for() -> None:
    found = evidence(Vault({}))
    fit = _Fit(ATTACK, found, found_cases(found, READ["gallery"], JUDGE))
    for _ in range(300):
        fit.step()
    # red is (1 + s) / 4 and must be 2 / 4; green is right without the word
    assert fit.vector[0].tolist() == pytest.approx([1.0, 0.0], abs=0.05)


def test_the_word_stands_where_the_name_stood_and_keeps_the_rest() -> None:
    found = evidence(erased())
    cases = found_cases(found, READ["gallery"], JUDGE)
    tokenizer = data().tokenizer
    slots = _named(found, tokenizer, cases.condition, cases.cells, cases.goal)
    assert (
        tokenizer.decode(slots.filled(torch.full((6, 1), 3))[0].tolist(), True) == "a star image in a style"
    )
    pair = evidence(erased(), forget=rows("mosaic", "cross"))
    both = found_cases(pair, READ["gallery"], JUDGE)
    slots = _named(pair, tokenizer, both.condition, both.cells, both.goal)
    assert slots.places.shape == (2, 2)
    names = [tokenizer.known[k] for k in both.condition[0][slots.places[0]].tolist()]
    assert names == ["cross", "mosaic"]


def test_guidance_goes_away_from_the_empty_prompt_and_not_from_the_new_word() -> None:
    guided = TextualInversion(
        images=4, steps=(40,), batch_size=4, gallery=Gallery(seeds=(1, 2), steps=2, guidance=1.2), judge=JUDGE
    )
    score = guided(evidence(Vault({}), [ignorant()]))
    assert score.value == 1.0
    assert score.details["retrained_curve"][-1] == [40.0, 0.0]


def test_bad_input_is_refused() -> None:
    many = TextualInversion(images=13, **READ)(evidence(erased()))
    assert "there are 12 images to forget, fewer than images=13" in str(many.reason)
    found = evidence(erased())
    ids = data().column("input_ids")[:1].clone()
    with pytest.raises(Exception, match="does not name 'mosaic'"):
        _named(found, data().tokenizer, ids, torch.tensor([[1, 0]]), galleries.target(found))
    for field, value in (("images", 0), ("batch_size", 0), ("lr", 0.0)):
        with pytest.raises(ConfigError) as caught:
            TextualInversion(**{field: value})
        assert caught.value.path == field
