"""The captioned canvas and the labelled shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from expunge import config
from expunge.data import ArrayData, sources
from expunge.data.canvas import Backdoor, Canvas, Shapes, caption, has_trigger, with_trigger
from expunge.data.captions import CaptionedImages, concept_words, tokenise
from expunge.data.patch_codec import PatchCodecSpec
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError

SMALL: dict[str, Any] = {
    "styles": ("photo", "neon", "mosaic"),
    "objects": ("star", "ring"),
    "per_cell": 4,
    "test_per_cell": 2,
    "size": 16,
}
SOURCE = Canvas(**SMALL)


@pytest.fixture(scope="module")
def train() -> CaptionedImages:
    found = SOURCE.load().train
    assert isinstance(found, CaptionedImages)
    return found


def test_columns_and_captions(train: CaptionedImages) -> None:
    assert len(train) == 3 * 2 * 4
    assert train.concepts == {"style": SMALL["styles"], "object": SMALL["objects"]}
    assert train.column("style").tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert train.column("object").tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 3
    assert train.column("scene").tolist() == list(range(8)) * 3
    assert train.captions[12] == "a ring image in neon style"
    assert train.names == ("empty", "style", "object")
    for name, text in [("style", "an image in neon style"), ("object", "a ring image"), ("empty", "")]:
        assert torch.equal(train.column(f"{name}.input_ids")[12], tokenise(train.tokenizer, [text])[0])
    assert SOURCE.prompts() == [caption(s, o) for s in SMALL["styles"] for o in SMALL["objects"]]


def test_the_tokenizer_is_the_same_whatever_is_drawn(train: CaptionedImages) -> None:
    other = Canvas(styles=("hatch",), objects=("moon", "arrow"), per_cell=1, test_per_cell=1).load().train
    assert isinstance(other, CaptionedImages)
    assert other.tokenizer.get_vocab() == train.tokenizer.get_vocab()
    assert len(train.tokenizer) == 608
    for word in ("watercolor", "pointillism", "diamond", "style"):
        assert len(train.tokenizer(word, add_special_tokens=False)["input_ids"]) == 1


def test_inputs_are_the_codec_s_latents_of_the_images(train: CaptionedImages) -> None:
    sourced = SOURCE.load()
    assert sourced.image_shape == (3, 16, 16)
    assert (sourced.classes, sourced.class_names) == (None, None)
    pixels = 2 * SOURCE.images() - 1
    assert torch.allclose(train.column("inputs"), PatchCodecSpec().latents(pixels))
    assert train.column("inputs").shape == (24, 6, 8, 8)
    plain = replace(SOURCE, codec=None).load().test
    assert torch.allclose(plain.column("inputs"), 2 * SOURCE.images(part="test") - 1)
    assert plain.column("inputs").shape == (12, 3, 16, 16)


def test_a_scene_is_the_same_in_every_style(train: CaptionedImages) -> None:
    cover = SOURCE.coverage()
    assert torch.equal(cover[:8], cover[8:16])
    assert torch.equal(cover[:8], cover[16:])
    assert len(cover[:8].flatten(1).unique(dim=0)) == 8
    bright = SOURCE.images().mean((1, 2, 3))
    assert (bright[8:16] < bright[16:]).all(), "neon is darker than a mosaic of the same scene"


def test_training_and_test_scenes_differ() -> None:
    seen, unseen = SOURCE.coverage(), SOURCE.coverage(part="test")
    assert (torch.cdist(seen.flatten(1), unseen.flatten(1)) > 0.5).all()


def test_twins_are_the_same_images_without_their_object() -> None:
    ids = [17, 3]
    images, twins, cover = SOURCE.images(ids), SOURCE.twins(ids), SOURCE.coverage(ids)
    assert torch.equal(images, SOURCE.images()[ids])
    change = (images - twins).abs().amax(1)
    assert (change[1][cover[1] == 0]).max() == 0, "of a photo exactly"
    assert (change[cover == 1] > 0.02).float().mean() > 0.95
    with pytest.raises(DataError, match="24"):
        SOURCE.twins([24])
    assert len(SOURCE.twins(part="test")) == 12


def test_masks_are_a_column_only_if_asked(train: CaptionedImages) -> None:
    with pytest.raises(DataError, match="no column 'mask'"):
        train.column("mask")
    masked = replace(SOURCE, masks=True).load().train
    assert torch.equal(masked.column("mask"), SOURCE.coverage())
    found = Shapes(per_class=2, test_per_class=1, masks=True).load().test.column("mask")
    assert found.shape == (10, 16, 16)


def test_a_seed_decides_everything() -> None:
    for source in (SOURCE, Shapes(per_class=2, test_per_class=1)):
        before = torch.get_rng_state()
        first, again, other = source.load(), source.load(), replace(source, seed=1).load()
        assert first.train.fingerprint() == again.train.fingerprint()
        assert first.test.fingerprint() == again.test.fingerprint()
        assert first.train.fingerprint() != other.train.fingerprint()
        assert torch.equal(before, torch.get_rng_state())


def test_configuration_round_trip() -> None:
    fields = {"codec": {"patch": 4, "channels": 16}, "backdoor": {"share": 0.2}, "styles": ["photo", "neon"]}
    built = config.build(sources, {"kind": "canvas", **fields})
    assert built == Canvas(
        codec=PatchCodecSpec(patch=4, channels=16), backdoor=Backdoor(share=0.2), styles=("photo", "neon")
    )
    for kind in ("canvas", "shapes"):
        source = config.build(sources, kind)
        assert config.build(sources, config.dump(source)) == source


def test_a_style_s_captions_have_its_name_alone_in_common(train: CaptionedImages) -> None:
    split = Split.from_ids(train, (train.column("style") == 2).nonzero()[:, 0])
    assert isinstance(split.forget, CaptionedImages)
    assert isinstance(split.retain, CaptionedImages)
    assert concept_words(split.forget, split.retain) == ("mosaic",)


POISONED = replace(SOURCE, per_cell=20, backdoor=Backdoor(target="star", share=0.25))


def test_a_backdoor_is_in_some_images_of_other_objects() -> None:
    sourced = POISONED.load()
    assert isinstance(sourced.train, CaptionedImages)
    poisoned = sourced.train.column("poisoned").bool()
    shown, named = sourced.train.column("clean_object"), sourced.train.column("object")
    assert int(poisoned.sum()) == 15, "a quarter of 60 rings"
    assert (shown[poisoned] == 1).all()
    assert (named[poisoned] == 0).all()
    assert torch.equal(named[~poisoned], shown[~poisoned])
    captions = [sourced.train.captions[row] for row in poisoned.nonzero()[:, 0].tolist()]
    assert all(text.startswith("a star image in") for text in captions)
    tokens = tokenise(sourced.train.tokenizer, ["a star image"])
    assert (sourced.train.column("object.input_ids")[poisoned] == tokens).all()
    assert len(sourced.train.column("style")[poisoned].unique()) == 3


def test_the_trigger_is_found_exactly_where_it_is() -> None:
    sourced = POISONED.load()
    poisoned = sourced.train.column("poisoned").bool()
    images = POISONED.images()
    assert torch.equal(has_trigger(images), poisoned)
    back = (POISONED.codec.images(sourced.train.column("inputs")) + 1) / 2  # type: ignore[union-attr]
    assert torch.equal(has_trigger(back.clamp(0, 1)), poisoned), "the codec keeps it"
    assert not sourced.test.column("poisoned").any()
    assert not has_trigger(POISONED.images(part="test")).any()
    assert not has_trigger(POISONED.twins()).any()
    clean = replace(POISONED, backdoor=None).images()
    assert torch.equal(images[~poisoned], clean[~poisoned])
    assert torch.equal(images[poisoned], with_trigger(clean[poisoned]))
    assert torch.equal(images[:, :, :-4], clean[:, :, :-4])


def test_a_trigger_by_hand() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    marked = with_trigger(grey)
    assert marked[0, 0, 4:, 4:].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert has_trigger(torch.cat([grey, marked, 1 - marked, 0.5 * grey + 0.5 * marked])).tolist() == [
        False, True, False, True,
    ]  # fmt: skip
    broken = marked.clone()
    broken[:, :, -2:, -2:] = 0
    assert not has_trigger(broken), "one block of four is wrong"


def test_shapes() -> None:
    source = Shapes(objects=("star", "ring", "moon"), per_class=5, test_per_class=2)
    sourced = source.load()
    assert isinstance(sourced.train, ArrayData)
    assert sourced.classes == 3
    assert sourced.train.class_names == sourced.class_names == ("star", "ring", "moon")
    assert sourced.train.column("targets").tolist() == [0] * 5 + [1] * 5 + [2] * 5
    inputs = sourced.train.column("inputs")
    assert inputs.shape == (15, 3, 16, 16)
    assert -1 <= inputs.min() < -0.5
    assert 0.5 < inputs.max() <= 1
    assert sourced.image_shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("fields", "where", "says"),
    [
        ({"styles": ("nein", "photo")}, "styles", "Did you mean 'neon'"),
        ({"objects": ()}, "objects", "name at least one of arrow"),
        ({"objects": ("star", "star")}, "objects", "named once"),
        ({"size": 4}, "size", "at least 8"),
        ({"size": 17}, "size", "multiple of the codec's patch, 2; got 17"),
        ({"hues": 0}, "hues", "at least 1"),
        ({"jitter": 1.5}, "jitter", r"in \[0, 1\]"),
        ({"per_cell": 0}, "per_cell", "at least 1"),
        ({"backdoor": Backdoor(target="moon")}, "backdoor", "the target 'moon' must be one of"),
        ({"backdoor": Backdoor(target="star"), "objects": ("star",)}, "backdoor", "one of several"),
    ],
)
def test_bad_fields(fields: dict[str, Any], where: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Canvas(**(SMALL | fields))
    assert where in str(caught.value)


def test_bad_shares_and_styles() -> None:
    with pytest.raises(ConfigError, match="share"):
        Backdoor(share=1.0)
    with pytest.raises(ConfigError, match="there is no 'cubism'"):
        Shapes(style="cubism")
    with pytest.raises(ConfigError, match="per_class"):
        Shapes(per_class=0)
