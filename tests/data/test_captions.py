"""Images with captions: their columns, parts and tokens, and where a concept stands in a caption."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.data import Split
from expunge.data.captions import CaptionedImages, concept_words, tokenise, word_positions
from expunge.data.clip_tokenizer import clip_tokenizer
from expunge.errors import DataError

CAPTIONS = ("a star in neon style", "a ring in neon style", "a star in hatch style", "a ring in hatch style")
CONCEPTS = {"style": ("neon", "hatch"), "object": ("star", "ring")}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return clip_tokenizer(CAPTIONS, max_length=8)


def data(tokenizer: Any, **fields: Any) -> CaptionedImages:
    columns = {"style": [0, 0, 1, 1], "object": [0, 1, 0, 1]}
    inputs = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    known = {"concepts": CONCEPTS, "columns": columns, "others": {"style": ["x"] * 4}} | fields
    return CaptionedImages(inputs, CAPTIONS, tokenizer, **known)


def test_a_batch_holds_inputs_tokens_and_concepts(tokenizer: Any) -> None:
    (batch,) = data(tokenizer).batches([torch.tensor([2, 1])], device="cpu")
    assert batch["inputs"].dtype == torch.float32
    assert batch["inputs"][:, 0, 0, 0].tolist() == [2, 1]
    assert batch["style"].tolist() == [1, 0]
    assert torch.equal(batch["input_ids"], tokenise(tokenizer, [CAPTIONS[2], CAPTIONS[1]]))
    assert torch.equal(batch["empty.input_ids"], tokenise(tokenizer, ["", ""]))
    assert torch.equal(batch["style.input_ids"], tokenise(tokenizer, ["x", "x"]))
    assert data(tokenizer).names == ("empty", "style")


def test_captions_follow_their_images_into_parts_and_back(tokenizer: Any) -> None:
    split = Split.from_ids(data(tokenizer), [2, 0])
    assert split.forget.captions == (CAPTIONS[2], CAPTIONS[0])
    assert split.retain.captions == (CAPTIONS[1], CAPTIONS[3])
    assert split.train().captions == CAPTIONS
    assert split.forget.concepts == CONCEPTS
    assert split.forget.tokenizer is tokenizer


def test_further_captions_are_a_column_of_a_new_data_set(tokenizer: Any) -> None:
    whole = data(tokenizer)
    part = whole.subset([3, 0])
    anchored = part.with_captions("anchor", ["a ring", "a star"])
    assert torch.equal(anchored.column("anchor.input_ids"), tokenise(tokenizer, ["a ring", "a star"]))
    assert torch.equal(anchored.subset([0]).column("anchor.input_ids"), tokenise(tokenizer, ["a star"]))
    assert anchored.ids.tolist() == [3, 0]
    assert anchored.names == ("empty", "style", "anchor")
    assert "anchor.input_ids" not in next(part.batches([torch.tensor([0])], device="cpu"))
    with pytest.raises(DataError, match="no parts of one data set"):
        anchored.joined(whole.subset([1]))
    again = anchored.with_captions("anchor", ["a star", "a star"])
    assert torch.equal(again.column("anchor.input_ids"), tokenise(tokenizer, ["a star", "a star"]))


def test_the_fingerprint_knows_pixels_captions_and_names(tokenizer: Any) -> None:
    whole = data(tokenizer)
    assert whole.fingerprint() == data(tokenizer).fingerprint()
    assert whole.subset([0, 1]).fingerprint() != whole.subset([1, 0]).fingerprint()
    others = [
        data(tokenizer, others={"style": ["x", "x", "x", "a"]}),
        data(tokenizer, concepts=CONCEPTS | {"object": ("star", "moon")}),
        whole.with_captions("anchor", ["a"] * 4),
    ]
    assert len({whole.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_shown_spells_out_the_first_example(tokenizer: Any) -> None:
    lines = data(tokenizer).shown(0).splitlines()
    assert lines[0] == "inputs: 3 × 2 × 2"
    assert lines[1] == "caption: a star in neon style"
    assert lines[2] == "tokens: <|startoftext|> a</w> star</w> in</w> neon</w> style</w> <|endoftext|>"


def test_captions_are_padded_with_the_end_as_clip_does(tokenizer: Any) -> None:
    tokens = tokenise(tokenizer, ["a star", "", "a star"])
    end = tokenizer.eos_token_id
    names = tokenizer.convert_ids_to_tokens(tokens[0, :3].tolist())
    assert tokens.shape == (3, 8)
    assert names == ["<|startoftext|>", "a</w>", "star</w>"]
    assert tokens[0, 3:].tolist() == [end] * 5
    assert tokens[1].tolist() == [tokenizer.bos_token_id, *[end] * 7]
    assert torch.equal(tokens[0], tokens[2])


def test_a_caption_that_is_too_long_is_refused_not_cut(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"'a star a star a star a star' has 10 tokens, more than the 8"):
        tokenise(tokenizer, ["a star", "a star a star a star a star"])


def test_a_tokenizer_must_know_its_length(tokenizer: Any) -> None:
    class Endless:
        model_max_length = int(1e30)

    with pytest.raises(DataError, match="Set its model_max_length"):
        tokenise(Endless(), ["a"])


def test_positions_of_a_word_of_one_token(tokenizer: Any) -> None:
    tokens = tokenise(tokenizer, [CAPTIONS[0], CAPTIONS[3]])
    found = word_positions(tokenizer, tokens, "NEON")
    assert found.nonzero().tolist() == [[0, 4]]
    assert word_positions(tokenizer, tokens, "neon style").nonzero().tolist() == [[0, 4], [0, 5]]


def test_positions_of_a_word_of_several_tokens(tokenizer: Any) -> None:
    """The length of a word is the tokenizer's business: counting spaces would mask one token of three."""
    tokens = tokenise(tokenizer, ["a cat in neon", "a star"])
    assert len(tokenizer("cat", add_special_tokens=False)["input_ids"]) == 3
    assert word_positions(tokenizer, tokens, "cat").nonzero().tolist() == [[0, 2], [0, 3], [0, 4]]


def test_the_end_of_a_longer_word_is_not_the_word(tokenizer: Any) -> None:
    tokens = tokenise(tokenizer, ["a xcb", "cb"])
    ids = tokenizer("cb", add_special_tokens=False)["input_ids"]
    assert tokens[0, 3:5].tolist() == ids, "the tokens alone would match"
    assert word_positions(tokenizer, tokens, "cb").nonzero().tolist() == [[1, 1], [1, 2]]


def test_padding_is_no_part_of_a_caption(tokenizer: Any) -> None:
    tokens = tokenise(tokenizer, ["a star"]).clone()
    tokens[0, -1] = tokenizer.convert_tokens_to_ids("star</w>")
    assert word_positions(tokenizer, tokens, "star").nonzero().tolist() == [[0, 2]]


def test_a_concept_that_the_tokenizer_cannot_see(tokenizer: Any) -> None:
    tokens = tokenise(tokenizer, ["a star"])
    for word in ("", "  "):
        with pytest.raises(DataError, match="cannot see the concept"):
            word_positions(tokenizer, tokens, word)
    assert not word_positions(tokenizer, tokens, "a star a star a star a star").any()


def test_the_words_of_a_concept() -> None:
    assert concept_words(CAPTIONS[:2], CAPTIONS[2:]) == ("neon",)
    assert concept_words(["A star, by Van Gogh."], ["a star"]) == ("by", "van", "gogh")
    assert concept_words(CAPTIONS[:1], CAPTIONS[3:]) == ("star", "neon")
    with pytest.raises(DataError, match="Name the concept"):
        concept_words(CAPTIONS[:1], CAPTIONS[1:])


def test_the_words_of_a_concept_are_read_from_data(tokenizer: Any) -> None:
    split = Split.from_ids(data(tokenizer), [1, 3])
    assert isinstance(split.forget, CaptionedImages)
    assert isinstance(split.retain, CaptionedImages)
    assert concept_words(split.forget, split.retain) == ("ring",)


def test_bad_input(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"inputs \(N, C, H, W\) of floating type"):
        CaptionedImages(torch.zeros(4, 3, dtype=torch.float32), CAPTIONS, tokenizer)
    with pytest.raises(DataError, match="floating type.*uint8"):
        CaptionedImages(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), CAPTIONS, tokenizer)
    with pytest.raises(DataError, match="4 images, but 3 captions style"):
        data(tokenizer, others={"style": ["x"] * 3})
    with pytest.raises(DataError, match="domain 'object' has concepts, but no column"):
        data(tokenizer, columns={"style": [0, 0, 1, 1]})
    with pytest.raises(DataError, match="column 'style' holds 2 in row 1, but there are 2 names"):
        data(tokenizer, columns={"style": [0, 2, 1, 1], "object": [0] * 4})
    with pytest.raises(DataError, match="4 examples, but 1 captions 'anchor'"):
        data(tokenizer).with_captions("anchor", ["a"])
