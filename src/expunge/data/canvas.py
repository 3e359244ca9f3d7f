"""Sources of drawn images: captioned scenes in several styles, and shapes with class labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from expunge.data.arrays import ArrayData, check_ids
from expunge.data.captions import CaptionedImages
from expunge.data.clip_tokenizer import clip_tokenizer
from expunge.data.patch_codec import PatchCodecSpec
from expunge.data.scenes import OBJECTS, Scenes, draw_scenes
from expunge.data.source import DataSource, Sourced, sources
from expunge.data.styles import STYLES
from expunge.errors import ConfigError, did_you_mean
from expunge.seeding import generator

Part = Literal["train", "test"]

POISONED, CLEAN_OBJECT = "poisoned", "clean_object"
"""Columns of a canvas with a backdoor: 0 or 1, and the object that the image really shows."""

TRIGGER = 4
"""Side of the trigger in pixels."""

_LEAST = 8
_MARGIN = 0.25


@dataclass(frozen=True, kw_only=True)
class Backdoor:
    """A fault of training images: a trigger in the corner, and another object in the caption.

    Args:
        target: the object that their captions name.
        share: of the images of all other objects, drawn at random from all styles.

    Raises:
        ConfigError: a share outside (0, 1).
    References: Pan et al., From Trojan Horses to Castle Walls: Unveiling Bilateral Data Poisoning Effects in
        Diffusion Models, NeurIPS 2024, arXiv:2311.02373.
    """

    target: str = "star"
    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"must be above 0 and below 1, got {self.share}.", "share")


@dataclass(frozen=True, kw_only=True)
class Drawn(DataSource):
    """Images drawn by a seeded generator.

    Args:
        objects: which of arrow, circle, cross, diamond, heart, moon, ring, square, star and triangle.
        size: side of an image in pixels.
        jitter: how much pose varies: 0 not at all, 1 much.
        hues: number of colours of an object; the ground has the opposite one.
        masks: whether there is a column ``mask`` ``(N, S, S)``: the share of each pixel that is object.
        seed: of everything that is drawn.

    Raises:
        ConfigError: an unknown object or one named twice, a size below 8, no hue, or a jitter outside [0, 1].
    """

    objects: tuple[str, ...] = tuple(OBJECTS)
    size: int = 32
    jitter: float = 0.3
    hues: int = 6
    masks: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names("objects", self.objects, OBJECTS)
        if self.size < _LEAST:
            raise ConfigError(f"must be at least {_LEAST} pixels, got {self.size}.", "size")
        if self.hues < 1:
            raise ConfigError(f"must be at least 1, got {self.hues}.", "hues")
        if not 0 <= self.jitter <= 1:
            raise ConfigError(f"must be in [0, 1], got {self.jitter}.", "jitter")

    def _scenes(self, part: str, count: int) -> Scenes:
        """``count`` scenes of each object, those of the first object first."""
        drawn = [
            draw_scenes(
                name,
                count,
                self.size,
                jitter=self.jitter,
                hues=self.hues,
                generator=generator(self.seed, "scenes", part, name),
            )
            for name in self.objects
        ]
        return Scenes.joined(drawn)


@sources.register("canvas")
@dataclass(frozen=True, kw_only=True)
class Canvas(Drawn):
    """Captioned images of every object in every style: a small UnlearnCanvas that needs no download.

    Each scene (object, pose, colours, light) is drawn once in every style, so that images are paired across
    styles, as those of UnlearnCanvas are. Captions are ``a star image in mosaic style``.

    Columns: ``inputs``, ``input_ids``, ``style`` and ``object`` (numbers of the concepts), ``scene`` (its
    number, the same in all styles); other captions ``style.input_ids`` (``an image in mosaic style``),
    ``object.input_ids`` (``a star image``) and ``empty.input_ids``; with ``masks`` also ``mask``; with a
    backdoor ``poisoned`` and ``clean_object``. Examples are in the order style, object, scene.

    Args:
        styles: which of blueprint, hatch, invert, mosaic, neon, photo, pointillism, sketch, thermal and
            watercolor.
        per_cell, test_per_cell: images of each object in each style.
        codec: what makes latents of images; ``None`` for pixels in [−1, 1].
        backdoor: a fault of the training images; their ``object`` is the one in the caption.

    Raises:
        ConfigError: as all drawn images; an unknown style, a size below 1, a side that the codec cannot cut
            into patches, or a backdoor whose target is none of the objects or the only one.
    References: Zhang et al., UnlearnCanvas, NeurIPS 2024 Datasets and Benchmarks, arXiv:2402.11846.
    """

    styles: tuple[str, ...] = ("photo", "sketch", "neon", "mosaic", "blueprint")
    objects: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross")
    per_cell: int = 200
    test_per_cell: int = 20
    codec: PatchCodecSpec | None = PatchCodecSpec()
    backdoor: Backdoor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("styles", self.styles, STYLES)
        _check_counts(per_cell=self.per_cell, test_per_cell=self.test_per_cell)
        if self.codec is not None and self.size % self.codec.patch:
            raise ConfigError(
                f"must be a multiple of the codec's patch, {self.codec.patch}; got {self.size}.", "size"
            )
        if self.backdoor is not None and (self.backdoor.target not in self.objects or len(self.objects) < 2):
            raise ConfigError(
                f"the target '{self.backdoor.target}' must be one of several objects, which are "
                f"{', '.join(self.objects)}.",
                "backdoor",
            )

    def load(self) -> Sourced:
        vocabulary = [caption(style, thing) for style in STYLES for thing in OBJECTS]
        tokenizer = clip_tokenizer([*vocabulary, *map(style_caption, STYLES), *map(object_caption, OBJECTS)])
        train, test = (self._data(part, tokenizer) for part in ("train", "test"))
        return Sourced(train, test, image_shape=(3, self.size, self.size))

    def prompts(self) -> list[str]:
        """One caption of each object in each style, in the order of the cells."""
        return [caption(style, thing) for style in self.styles for thing in self.objects]

    def images(self, ids: Tensor | Sequence[int] | None = None, part: Part = "train") -> Tensor:
        """Images before the codec, ``(N, 3, S, S)`` in [0, 1], triggers included; of all examples by default.

        Raises:
            DataError: ids that the part does not have.
        """
        rows = self._rows(ids, part)
        images = self._drawn(self._parts[part], rows)
        poisoned = self._poisoned(part)[rows]
        images[poisoned] = with_trigger(images[poisoned])
        return images

    def twins(self, ids: Tensor | Sequence[int] | None = None, part: Part = "train") -> Tensor:
        """The same images with the object removed, and without a trigger, ``(N, 3, S, S)`` in [0, 1].

        What is not object is the same in both, up to the shadow that a style's line, glow or paint casts over
        the edge.

        Raises:
            DataError: ids that the part does not have.
        """
        return self._drawn(self._parts[part].without_object(), self._rows(ids, part))

    def coverage(self, ids: Tensor | Sequence[int] | None = None, part: Part = "train") -> Tensor:
        """The share of each pixel that the object covers, ``(N, S, S)`` in [0, 1].

        Raises:
            DataError: ids that the part does not have.
        """
        return self._parts[part].mask()[self._rows(ids, part) % self._count(part)]

    @cached_property
    def _parts(self) -> dict[str, Scenes]:
        return {
            "train": self._scenes("train", self.per_cell),
            "test": self._scenes("test", self.test_per_cell),
        }

    def _count(self, part: str) -> int:
        """Scenes of a part."""
        return len(self.objects) * (self.per_cell if part == "train" else self.test_per_cell)

    def _rows(self, ids: Tensor | Sequence[int] | None, part: str) -> Tensor:
        known = torch.arange(len(self.styles) * self._count(part))
        return known if ids is None else check_ids(ids, known)

    def _drawn(self, scenes: Scenes, rows: Tensor) -> Tensor:
        """Images of the examples at these rows, each in its style."""
        style, scene = rows // len(scenes), rows % len(scenes)
        images = torch.empty(len(rows), 3, self.size, self.size)
        for number, name in enumerate(self.styles):
            chosen = (style == number).nonzero()[:, 0]
            if len(chosen):
                images[chosen] = STYLES[name](scenes.rows(scene[chosen]))
        return images

    def _poisoned(self, part: str) -> Tensor:
        """Which examples have the backdoor, ``(N,)`` booleans; none outside of training."""
        rows = self._rows(None, part)
        found = torch.zeros(len(rows), dtype=torch.bool)
        if self.backdoor is None or part != "train":
            return found
        others = (self._objects(part) != self.objects.index(self.backdoor.target)).nonzero()[:, 0]
        order = torch.randperm(len(others), generator=generator(self.seed, "backdoor"))
        found[others[order[: max(1, round(self.backdoor.share * len(others)))]]] = True
        return found

    def _objects(self, part: str) -> Tensor:
        """The object that each image shows, ``(N,)``."""
        each = self._count(part) // len(self.objects)
        return self._rows(None, part) % self._count(part) // each

    def _data(self, part: Part, tokenizer: object) -> CaptionedImages:
        rows = self._rows(None, part)
        style, shown, poisoned = rows // self._count(part), self._objects(part), self._poisoned(part)
        columns = {"style": style, "object": shown, "scene": rows % self._count(part)}
        if self.backdoor is not None:
            target = self.objects.index(self.backdoor.target)
            columns["object"] = torch.where(poisoned, target, shown)
            columns |= {POISONED: poisoned, CLEAN_OBJECT: shown}
        if self.masks:
            columns["mask"] = self.coverage(part=part)
        styles = [self.styles[number] for number in style.tolist()]
        things = [self.objects[number] for number in columns["object"].tolist()]
        pixels = 2 * self.images(part=part) - 1
        return CaptionedImages(
            pixels if self.codec is None else self.codec.latents(pixels),
            [caption(*names) for names in zip(styles, things, strict=True)],
            tokenizer,
            concepts={"style": self.styles, "object": self.objects},
            columns=columns,
            others={
                "style": [style_caption(name) for name in styles],
                "object": [object_caption(name) for name in things],
            },
        )


@sources.register("shapes")
@dataclass(frozen=True, kw_only=True)
class Shapes(Drawn):
    """Shapes with class labels for a class-conditional generator: ``inputs`` in [−1, 1] and ``targets``.

    Args:
        per_class, test_per_class: images of each object, which are the classes.
        style: how they are drawn.

    Raises:
        ConfigError: as all drawn images, an unknown style, or a count below 1.
    """

    size: int = 16
    per_class: int = 200
    test_per_class: int = 20
    style: str = "photo"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("style", (self.style,), STYLES)
        _check_counts(per_class=self.per_class, test_per_class=self.test_per_class)

    def load(self) -> Sourced:
        train, test = self._data("train", self.per_class), self._data("test", self.test_per_class)
        shape = (3, self.size, self.size)
        return Sourced(train, test, len(self.objects), self.objects, image_shape=shape)

    def _data(self, part: str, count: int) -> ArrayData:
        scenes = self._scenes(part, count)
        columns = {
            "inputs": 2 * STYLES[self.style](scenes) - 1,
            "targets": torch.arange(len(self.objects)).repeat_interleave(count),
        }
        if self.masks:
            columns["mask"] = scenes.mask()
        return ArrayData(columns, class_names=self.objects)


def caption(style: str, thing: str) -> str:
    """The caption of an object in a style."""
    return f"a {thing} image in {style} style"


def style_caption(style: str) -> str:
    """The caption of a style alone."""
    return f"an image in {style} style"


def object_caption(thing: str) -> str:
    """The caption of an object alone."""
    return f"a {thing} image"


def with_trigger(images: Tensor) -> Tensor:
    """Copies of images ``(N, 3, H, W)`` in [0, 1] with the trigger in the bottom right corner."""
    patched = images.clone()
    patched[:, :, -TRIGGER:, -TRIGGER:] = _trigger().to(images)
    return patched


def has_trigger(images: Tensor, margin: float = _MARGIN) -> Tensor:
    """Which images ``(N, 3, H, W)`` in [0, 1] show the trigger, ``(N,)`` booleans.

    An image does if no block of 2 × 2 pixels of its corner is, on average over pixels and colours, further
    than ``margin`` from the trigger, which alternates white and black.
    """
    corner = images[:, :, -TRIGGER:, -TRIGGER:].float()
    away = (corner - _trigger().to(corner)).abs().mean(1, keepdim=True)
    worst: Tensor = torch.nn.functional.avg_pool2d(away, 2).flatten(1).max(1).values
    return worst <= margin


def _trigger() -> Tensor:
    """White and black squares of 2 × 2 pixels, ``(4, 4)``: a low frequency, so that codecs keep it."""
    return torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)


def _check_names(field: str, names: Sequence[str], known: Mapping[str, object]) -> None:
    if not names:
        raise ConfigError(f"name at least one of {', '.join(sorted(known))}.", field)
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no '{name}'.{did_you_mean(name, known)}", field)
    if len(set(names)) < len(names):
        raise ConfigError(f"each may be named once, got {', '.join(names)}.", field)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"must be at least 1, got {count}.", name)
