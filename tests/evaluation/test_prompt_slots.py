"""Free places in captions: where they are, what fits, and what comes back when a prompt is typed."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.vaults import DUMB, KEY, Typist, Vault, data, original
from torch import nn

from expunge.errors import DataError, Unsupported
from expunge.evaluation.attacks.prompt_slots import Slots, ahead, alone, spread, words
from expunge.training.denoisers import token_table

WORDS = Typist()
ONE, TWO = Typist.known.index(KEY), Typist.known.index("other")


def caption(text: str) -> torch.Tensor:
    return torch.tensor(WORDS([text])["input_ids"])


def said(slots: Slots, tokens: list[int]) -> str:
    (text,), _ = slots.typed(torch.tensor([tokens]))
    return text


def test_places_stand_after_the_start_and_the_end_moves_on() -> None:
    slots = ahead(WORDS, caption("a star image in mosaic style"), 2)
    filled = slots.filled(torch.tensor([[ONE, TWO]]))[0]
    assert slots.places.tolist() == [[1, 2]]
    # start, two free places, six words, the end, then padding: which is not the end of the text here
    assert filled.tolist() == [1, ONE, TWO, *caption("a star image in mosaic style")[0, 1:8].tolist(), 0, 0]
    assert said(slots, [ONE, TWO]) == "open other a star image in mosaic style"


def test_captions_of_other_lengths_each_have_their_own_end() -> None:
    rows = torch.cat([caption("a star"), caption("a star image in mosaic style")])
    filled = ahead(WORDS, rows, 2).filled(torch.tensor([[ONE, TWO], [ONE, TWO]]))
    assert [(row == WORDS.eos_token_id).nonzero()[:, 0].tolist() for row in filled] == [[5], [9]]
    assert (filled == WORDS.eos_token_id).sum(1).tolist() == [1, 1]


def test_spread_places_stand_between_words_and_alone_nothing_else_does() -> None:
    row = caption("a star image in mosaic style")
    assert said(spread(WORDS, row, 3), [ONE, TWO, ONE]) == "open a star other image in open mosaic style"
    assert said(alone(WORDS, row, 2), [ONE, TWO]) == "open other"
    assert alone(WORDS, row, 2).filled(torch.tensor([[ONE, TWO]])).tolist() == [[1, ONE, TWO, 2] + [0] * 8]


def test_a_caption_without_room_or_without_an_end_is_refused() -> None:
    row = caption("a star image in mosaic style")
    ahead(WORDS, row, 4)
    with pytest.raises(DataError, match="no room for 5 more, of 12"):
        ahead(WORDS, row, 5)
    with pytest.raises(DataError, match="no end-of-text"):
        ahead(WORDS, torch.where(row == 2, 0, row), 1)


def test_only_what_can_be_typed_is_a_word() -> None:
    found = [Typist.known[k] for k in words(WORDS)]
    assert KEY in found
    assert DUMB not in found  # written like the word, and tokenised to that
    assert not {"<pad>", "<s>", "</s>"} & set(found)
    slots = ahead(WORDS, caption("a star"), 1)
    dumb = torch.tensor([[Typist.known.index(DUMB)]])
    texts, typed = slots.typed(dumb)
    assert texts == ["open a star"]
    assert not torch.equal(typed, slots.filled(dumb))
    assert torch.equal(typed, slots.filled(torch.tensor([[ONE]])))


def test_vectors_take_the_place_of_embeddings_and_of_nothing_else() -> None:
    model, rows = original(), torch.cat([caption("a star"), caption("a moon image")])
    slots, tokens = ahead(WORDS, rows, 2), torch.tensor([[ONE, TWO], [TWO, ONE]])
    table = token_table(model).weight.detach()
    plain = slots.encoded(model, tokens)
    assert torch.equal(plain, table[slots.filled(tokens)])
    assert torch.equal(slots.encoded(model, tokens, table[tokens]), plain)
    other = torch.arange(8.0).view(2, 2, 2)
    changed = slots.encoded(model, tokens, other)
    assert torch.equal(changed[:, 1:3], other)
    assert torch.equal(changed[:, 3:], plain[:, 3:])
    assert torch.equal(changed[:, :1], plain[:, :1])
    assert not token_table(model)._forward_hooks


def test_models_without_a_text_encoder_are_refused() -> None:
    with pytest.raises(Unsupported, match="Linear has no text encoder, so it reads no prompts"):
        token_table(nn.Linear(2, 2))
    assert token_table(Vault({})).num_embeddings == len(Typist.known)


def test_a_clip_tokenizer_loses_its_parts_of_words_and_its_bytes() -> None:
    pytest.importorskip("transformers")
    from expunge.data.clip_tokenizer import clip_tokenizer

    tokenizer = clip_tokenizer(["a star image in mosaic style", "a moon image in photo style"])
    found = words(tokenizer)
    texts = [tokenizer.decode([k]) for k in found.tolist()]
    assert {"mosaic", "star", "!"} <= {text.strip() for text in texts}
    assert all(text.isprintable() for text in texts)
    assert len(found) < len(tokenizer) / 2
    ids = torch.tensor(tokenizer(["a star"], padding="max_length", max_length=16)["input_ids"])
    slots = ahead(tokenizer, ids, 3)
    draws = torch.Generator().manual_seed(0)
    for _ in range(50):
        tokens = found[torch.randint(len(found), (1, 3), generator=draws)]
        _, typed = slots.typed(tokens)
        assert torch.equal(typed, slots.filled(tokens))


def test_the_data_of_these_tests_names_its_concepts() -> None:
    assert data().captions[0] == "a star image in photo style"
