"""Cosines of pictures and prompts by embeddings made by hand, and pairs that cannot be trusted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.evaluation.micro import sound
from tests.evaluation.painters import GALLERY, OBJECTS, STYLES, Cell, Painter, evidence, rows
from torch import Tensor, nn

from expunge.errors import ConfigError, DataError
from expunge.evaluation import clip_pairs
from expunge.evaluation.clip_pairs import Clip
from expunge.evaluation.metrics.clip_alignment import ClipAlignment
from expunge.training.optim import AdamW

HAND = Clip(load="tests.evaluation.test_clip_alignment:by_hand")
STAR, CROSS, MOON = range(3)
ERASED: dict[Cell, Cell] = {(1, STAR): (0, STAR), (1, CROSS): (0, MOON), (0, MOON): (1, STAR)}
"""Mosaic stars became photos of stars, mosaic crosses photos of moons; photos of moons mosaic stars."""


class ByHand(nn.Module):
    """An image and a caption are one-hot style and one-hot object: the cosine is the share that agrees.

    Lengths are not 1, so that a product in place of a cosine is found out.
    """

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def image_features(self, images: Tensor) -> Tensor:
        levels = (images[:, :2, 0, 0] * 4).round().long() - 1
        style = torch.eye(len(STYLES))[levels[:, 0].clamp(0)]
        thing = torch.eye(len(OBJECTS))[levels[:, 1].clamp(0) * (not self.blind)]
        return 3.0 * torch.cat([style, thing], 1)

    def text_features(self, captions: list[str]) -> Tensor:
        style = [[float(name in caption.split()) for name in STYLES] for caption in captions]
        thing = [[float(name in caption.split()) for name in OBJECTS] for caption in captions]
        return 0.2 * torch.cat([torch.tensor(style), torch.tensor(thing)], 1)


def by_hand() -> nn.Module:
    return ByHand()


def blind() -> nn.Module:
    """Takes every object for a star."""
    return ByHand(blind=True)


def narrow() -> nn.Module:
    """Captions of fewer numbers than images have."""
    made = ByHand()
    made.text_features = lambda captions: torch.ones(len(captions), 2)  # type: ignore[method-assign, assignment]
    return made


def broken() -> nn.Module:
    made = ByHand()
    made.image_features = lambda images: torch.full((len(images), 5), torch.nan)  # type: ignore[method-assign, assignment]
    return made


def nothing() -> nn.Module:
    return nn.Linear(2, 2)


def value(model: nn.Module, part: Any, forget: list[int] | None = None) -> float:
    score = ClipAlignment(part=part, gallery=GALLERY, clip=HAND)(evidence(model, forget))
    sound(score)
    assert score.id == f"CLIP alignment.{part}.2-seeds-2-steps-g1"
    return score.value


def test_cosines_by_hand() -> None:
    # mosaics: stars are photos (1 of 2 agree), crosses are photos of moons (0), moons stay (1)
    assert value(Painter(ERASED), "forget") == pytest.approx((0.5 + 0 + 1) / 3)
    # photos: stars and crosses stay, moons are mosaic stars
    assert value(Painter(ERASED), "retain") == pytest.approx((1 + 1 + 0) / 3)
    assert value(Painter(), "forget") == pytest.approx(1)
    # of the prompts of crosses one stays and one is a photo of a moon
    assert value(Painter(ERASED), "forget", rows(None, "cross")) == pytest.approx((1 + 0) / 2)


def test_the_details_say_how_far_the_pair_knows_real_images() -> None:
    score = ClipAlignment(gallery=GALLERY, clip=HAND)(evidence(Painter(ERASED)))
    assert score.details["retrieval"] == 1
    assert score.details["real"] == pytest.approx(1)
    told = {text.split()[1]: cosine for text, cosine in score.details["prompts"].items()}
    assert told == pytest.approx({"star": 0.5, "cross": 0, "moon": 1})
    assert score.n == 6
    assert score.details["forgotten"] == "mosaic"


def test_a_pair_that_does_not_know_real_images_gives_no_value() -> None:
    """The trap: every object a star, so 2 of the 6 prompts are found; the cosines would look like any."""
    score = ClipAlignment(gallery=GALLERY, clip=Clip(load="tests.evaluation.test_clip_alignment:blind"))(
        evidence(Painter())
    )
    assert "cannot be trusted: of 6 prompts it finds the right one for only 33.3%" in str(score.reason)
    assert "below 90%" in str(score.reason)


SMALL: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "channels": 4, "batch_size": 12}


def test_our_own_pair_learns_to_tell_prompts_apart_and_an_untrained_one_is_refused() -> None:
    pytest.importorskip("transformers")
    kept: dict[str, Any] = {}

    def keep(name: str, depends: tuple[Any, ...], compute: Any) -> Any:
        key = f"{name} {depends}"
        if key not in kept:
            kept[key] = compute()[1]
        return kept[key]

    raw = Clip(**SMALL, epochs=1, optim=AdamW(lr=1e-9))
    refused = ClipAlignment(gallery=GALLERY, clip=raw)(evidence(Painter(ERASED), keep=keep))
    assert "cannot be trusted" in str(refused.reason)
    clip = Clip(**SMALL, epochs=60, optim=AdamW(lr=5e-3, weight_decay=0.0, schedule="cosine", warmup=0.1))
    found = evidence(Painter(ERASED), keep=keep)
    score = ClipAlignment(gallery=GALLERY, clip=clip)(found)
    assert score.reason is None
    assert score.details["retrieval"] >= 0.9
    told = score.details["prompts"]
    assert told["a moon image in mosaic style"] > told["a cross image in mosaic style"] + 0.2
    assert len(kept) == 2
    again = evidence(Painter(), rows(None, "star"), keep=keep)
    other = ClipAlignment(gallery=GALLERY, clip=clip)(again)
    assert len(kept) == 2
    assert other.details["real"] == score.details["real"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("narrow", "features of images have 5 numbers, those of captions 2"),
        ("broken", "features of images are (12, 5) or not finite"),
        ("nothing", "returned Linear; expected a torch nn.Module with image_features and text_features"),
        ("nobody", "has no function 'nobody'"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(function: str, said: str) -> None:
    clip = Clip(load=f"tests.evaluation.test_clip_alignment:{function}")
    assert said in str(ClipAlignment(gallery=GALLERY, clip=clip)(evidence(Painter())).reason)


def test_sizes_are_checked() -> None:
    with pytest.raises(ConfigError, match="epochs: must be at least 1"):
        Clip(epochs=0)
    found = evidence(Painter())
    parts = {name: part for name, part in found.parts.items() if name != "test"}
    object.__setattr__(found, "parts", parts)
    assert "Give the split test=" in str(ClipAlignment(gallery=GALLERY, clip=HAND)(found).reason)
    with pytest.raises(DataError, match="of 2 prompts it finds the right one for only 50.0%"):
        clip_pairs.Pair(ByHand(), torch.eye(2), retrieval=0.5).check()
