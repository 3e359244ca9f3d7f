"""What a concept turns into, in captions and in classes."""

from __future__ import annotations

import pytest
import torch
from tests.canvases import micro
from torch import nn

from expunge import config
from expunge.data import ArrayData, Split
from expunge.data.arrays import fixed_order
from expunge.data.canvas import Canvas
from expunge.data.captions import tokenise
from expunge.errors import DataError, Unsupported
from expunge.methods.anchors import Anchor, anchor_captions, anchored, concept_terms, replaced
from expunge.tasks import Classification, Diffusion
from expunge.training.session import Session

STYLES = ("photo", "sketch", "neon", "mosaic")
OBJECTS = ("circle", "star", "cross")
TASK = Diffusion(timesteps=20)


@pytest.fixture(scope="module")
def data():
    return (
        Canvas(styles=STYLES, objects=OBJECTS, per_cell=2, test_per_cell=1, size=8, codec=None).load().train
    )


def split_of(data, **wanted):
    there = torch.ones(len(data), dtype=torch.bool)
    for domain, name in wanted.items():
        there &= data.column(domain) == data.concepts[domain].index(name)
    return Split.from_ids(data, data.ids[there])


def captions(split, anchor, **more):
    return anchor_captions(split, Session(seed=0), anchor, **more)


def test_next_is_the_retained_concept_that_follows_and_the_first_after_the_last(data):
    assert set(captions(split_of(data, style="sketch"), "next")) == {
        f"a {o} image in neon style" for o in OBJECTS
    }
    assert set(captions(split_of(data, style="mosaic"), "next")) == {
        f"a {o} image in photo style" for o in OBJECTS
    }
    assert set(captions(split_of(data, object="cross"), "next")) == {
        f"a circle image in {s} style" for s in STYLES
    }


def test_next_passes_over_concepts_that_are_not_retained(data):
    split = split_of(data, style="sketch")
    neon = data.concepts["style"].index("neon")
    retain = split.retain.subset(split.retain.ids[split.retain.column("style") != neon])
    assert captions(Split(split.forget, retain), "next")[0] == "a circle image in mosaic style"


def test_the_column_holds_the_tokens_of_the_other_caption_and_all_else_stays(data):
    split = split_of(data, style="mosaic")
    found = anchored(split, TASK, Session(seed=0), "next")
    wanted = tokenise(data.tokenizer, [c.replace("mosaic", "photo") for c in split.forget.captions])
    assert torch.equal(found.forget.column("anchor.input_ids"), wanted)
    assert torch.equal(found.forget.column("input_ids"), split.forget.column("input_ids"))
    assert torch.equal(found.forget.ids, split.forget.ids)
    assert found.retain is split.retain
    (batch,) = found.forget.batches(fixed_order(len(found.forget), 100), device="cpu")
    assert torch.equal(TASK.instead(batch, "anchor")["input_ids"], wanted)


def test_random_draws_other_concepts_for_each_example_by_the_sessions_seed(data):
    split = split_of(data, style="mosaic")
    first, again = captions(split, "random"), captions(split, "random")
    assert first == again
    assert len({c.split()[-2] for c in first}) > 1
    assert not any("mosaic" in c for c in first)
    assert first != anchor_captions(split, Session(seed=1), "random")


def test_a_pair_is_replaced_word_by_word(data):
    split = split_of(data, style="mosaic", object="star")
    with pytest.raises(DataError, match="Name the concept"):
        captions(split, "next")
    assert set(captions(split, "next", concept="mosaic star")) == {"a cross image in photo style"}
    assert set(captions(split, "neon circle", concept="mosaic star")) == {"a circle image in neon style"}
    with pytest.raises(DataError, match="Give as many words, or a whole caption"):
        captions(split, "photo", concept="mosaic star")


def test_words_take_the_concepts_place_and_a_prompt_that_of_the_caption(data):
    split = split_of(data, style="mosaic", object="star")
    assert set(captions(split, "oil paint", concept="mosaic")) == {"a star image in oil paint style"}
    assert set(captions(split, "prompt: a painting")) == {"a painting"}
    assert set(captions(split, str.upper)) == {"A STAR IMAGE IN MOSAIC STYLE"}


def test_other_captions_of_the_data_are_anchors_by_name(data):
    split = split_of(data, style="mosaic")
    assert set(captions(split, "empty")) == {""}
    assert set(captions(split, "object")) == {f"a {o} image" for o in OBJECTS}
    found = anchored(split, TASK, Session(seed=0), "empty").forget
    assert torch.equal(found.column("anchor.input_ids"), found.column("empty.input_ids"))


def test_phrases_are_replaced_as_a_whole_and_never_inside_other_words():
    assert replaced("a star and a Starfish in van gogh style", ("star",), ("moon",)) == (
        "a moon and a Starfish in van gogh style"
    )
    assert replaced("art by Van Gogh", ("van gogh",), (r"\1 monet",)) == r"art by \1 monet"


def test_a_concept_of_two_words_in_a_row_is_one_phrase(data):
    split = split_of(data, style="mosaic")
    assert concept_terms(split) == ("mosaic",)
    assert concept_terms(split, "mosaic style") == ("mosaic style",)
    assert set(captions(split, "no style", concept="mosaic style")) == {
        f"a {o} image in no style" for o in OBJECTS
    }


class Reads(nn.Module):
    """A text encoder whose state at the end is a vector of the style that was named."""

    def __init__(self, tokenizer, vectors):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.known = {tokenizer(word)["input_ids"][1]: torch.tensor(v) for word, v in vectors.items()}

    def encode_text(self, input_ids):
        states = [sum(self.known.get(int(i), torch.zeros(2)) for i in row) for row in input_ids]
        return self.scale * torch.stack(states)[:, None].expand(-1, input_ids.shape[1], -1)


def test_nearest_is_the_concept_whose_captions_the_text_encoder_reads_most_alike(data):
    split = split_of(data, style="mosaic")
    vectors = {"mosaic": [1.0, 0.0], "photo": [0.0, 1.0], "sketch": [5.0, 1.0], "neon": [-1.0, 0.1]}
    model = Reads(data.tokenizer, vectors)
    assert captions(split, "nearest", model=model)[0] == "a circle image in sketch style"
    with pytest.raises(Unsupported, match="Choose the anchor 'next'"):
        captions(split, "nearest")


def test_nearest_runs_on_a_real_text_encoder():
    made = micro()
    split = split_of(made.data, style="mosaic")
    assert captions(split, "nearest", model=made.model)[0] == "a circle image in sketch style"


@pytest.mark.parametrize(
    ("concept", "anchor", "said"),
    [
        ("cubist", "next", "'cubist' is not in the caption 'a circle image in mosaic style'"),
        ("mosaic", "mosaic", "leaves every caption as it is"),
        ("style", "next", "is in no domain with another retained concept"),
        ("   ", "mosaic", "leaves every caption as it is"),
    ],
)
def test_bad_concepts_and_anchors_are_refused(data, concept, anchor, said):
    with pytest.raises(DataError, match=said):
        anchored(split_of(data, style="mosaic"), TASK, Session(seed=0), anchor, concept=concept)


def test_a_concept_that_the_tokenizer_cannot_see_is_refused(data):
    split = split_of(data, style="mosaic")
    with pytest.raises(DataError, match="the tokenizer cannot see the concept"):
        concept_terms(Split(Blind.of(split.forget), split.retain), "mosaic")


class Blind:
    """The data under a tokenizer to which every word is unknown."""

    def __init__(self, tokenizer):
        self.tokenizer, self.unk_token_id = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.__dict__["tokenizer"], name)

    def __call__(self, text, **options):
        found = self.tokenizer(text, **options)
        return {"input_ids": [0]} if isinstance(text, str) else found

    @classmethod
    def of(cls, data):
        view = data.subset(data.ids)
        view.tokenizer = cls(data.tokenizer)
        return view


def classes(forget=(1,), names=None):
    targets = torch.arange(12) % 4
    data = ArrayData({"inputs": torch.zeros(12, 2), "targets": targets}, class_names=names)
    return Split.from_ids(data, data.ids[torch.isin(targets, torch.tensor(forget))])


OF_CLASSES = Diffusion(timesteps=20, conditions=4)


def targets(split, anchor, seed=0, **more):
    found = anchored(split, OF_CLASSES, Session(seed=seed), anchor, **more).forget
    (batch,) = found.subset(found.ids.flip(0)).batches(fixed_order(len(found), 100), device="cpu")
    other = OF_CLASSES.instead(batch, "anchor")["targets"]
    assert torch.equal(other.flip(0), found.column("anchor.targets"))
    return other.flip(0).tolist()


def test_classes_turn_into_the_next_retained_one_another_by_name_or_none():
    assert targets(classes((1,)), "next") == [2, 2, 2]
    assert targets(classes((3,)), "next") == [0, 0, 0]
    assert targets(classes((1, 2)), "next") == [3, 3] * 3
    assert targets(classes(), "empty") == [4, 4, 4]
    assert targets(classes(names=("ant", "bee", "cat", "dog")), "dog") == [3, 3, 3]
    assert targets(classes(), "0") == [0, 0, 0]
    assert targets(classes(), lambda c: c + 2) == [3, 3, 3]
    drawn = [c for seed in range(9) for c in targets(classes(), "random", seed)]
    assert set(drawn) == {0, 2, 3}


def test_the_nearest_class_has_the_most_similar_embedding():
    model = nn.Embedding(5, 2)
    vectors = [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [1.0, 0.0]]
    model.weight.data = torch.tensor(vectors)
    assert targets(classes(), "nearest", model=model) == [3, 3, 3]
    with pytest.raises(Unsupported, match="Choose the anchor 'next'"):
        targets(classes(), "nearest")


@pytest.mark.parametrize(
    ("anchor", "said"),
    [
        ("moon", "there is no class 'moon'"),
        ("9", "gives class 9; there are 0..3"),
        ("1", "leaves every class as it is"),
        (lambda c: -1, "gives class -1"),
    ],
)
def test_bad_classes_are_refused(anchor, said):
    with pytest.raises(DataError, match=said):
        targets(classes(), anchor)


def test_data_without_captions_or_conditions_is_refused():
    for task in (Diffusion(timesteps=20), Classification(4)):
        with pytest.raises(Unsupported, match="Give captioned images, or choose a method without an anchor"):
            anchored(classes(), task, Session(seed=0), "next")


def test_a_configuration_takes_words():
    assert config._convert(Anchor, "next", "anchor") == "next"
