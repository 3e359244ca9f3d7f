"""The tokenizer made of captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.data.clip_tokenizer import BASE, _merges, clip_tokenizer
from expunge.errors import ConfigError, DataError

CAPTIONS = ("a star image in neon style", "a ring, in Van_Gogh style 7", "ein Bär")


def test_every_word_of_the_captions_is_one_token() -> None:
    tokenizer = clip_tokenizer(CAPTIONS)
    assert tokenizer.tokenize(CAPTIONS[0]) == [
        "a</w>",
        "star</w>",
        "image</w>",
        "in</w>",
        "neon</w>",
        "style</w>",
    ]
    pieces = ["a</w>", "ring</w>", ",</w>", "in</w>", "van</w>", "_</w>", "gogh</w>", "style</w>", "7</w>"]
    assert tokenizer.tokenize(CAPTIONS[1]) == pieces
    assert len(tokenizer.tokenize("bär")) == 1
    assert (
        tokenizer.decode(tokenizer("a star image")["input_ids"], skip_special_tokens=True) == "a star image"
    )


def test_other_words_are_spelt_so_that_nothing_is_unknown() -> None:
    tokenizer = clip_tokenizer(CAPTIONS)
    assert tokenizer.tokenize("xq") == ["x", "q</w>"]
    special = set(tokenizer.all_special_ids)
    assert not special & set(tokenizer("xqz 猫 €%", add_special_tokens=False)["input_ids"])


def test_the_special_tokens_are_where_clip_has_them() -> None:
    tokenizer = clip_tokenizer(CAPTIONS, max_length=9)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.model_max_length == 9
    row = tokenizer("a star")["input_ids"]
    assert (row[0], row[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_merges_by_hand() -> None:
    """``ab`` 3 times and ``abb`` twice: (a, b</w>) 3 × beats (a, b) and (b, b</w>) 2 ×, which tie."""
    assert _merges({"ab": 3, "abb": 2}) == [("a", "b</w>"), ("a", "b"), ("ab", "b</w>")]
    assert _merges({"a": 5}) == []
    assert len(clip_tokenizer(["ab ab ab abb abb"])) == BASE + 3 + 2


def test_the_same_words_make_the_same_tokenizer() -> None:
    first, again = clip_tokenizer(CAPTIONS), clip_tokenizer(tuple(reversed(CAPTIONS)))
    assert first.get_vocab() == again.get_vocab()
    assert first(list(CAPTIONS))["input_ids"] == again(list(CAPTIONS))["input_ids"]


def test_save_and_load(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = clip_tokenizer(CAPTIONS, max_length=12)
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*CAPTIONS, "", "unseen wörds"]
    options = {"padding": "max_length", "max_length": 12}
    assert loaded(texts, **options)["input_ids"] == tokenizer(texts, **options)["input_ids"]
    assert loaded.model_max_length == 12
    assert loaded.pad_token_id == tokenizer.pad_token_id


def test_bad_input() -> None:
    with pytest.raises(DataError, match="no text"):
        clip_tokenizer(["", "  "])
    with pytest.raises(ConfigError, match="at least 3"):
        clip_tokenizer(CAPTIONS, max_length=2)
