"""One picture of what several models draw for the same prompts with the same seeds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.errors import ConfigError, MissingExtra, RunError

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 128
"""Small images are enlarged by a whole number until they have at least so many pixels along a side."""

_GAP, _LINE, _INK, _FAINT = 6, 22, (20, 20, 20), (110, 110, 110)


def grid(drawn: Mapping[str, Tensor], prompts: Sequence[str], seeds: Sequence[int]) -> Image:
    """A block for each prompt, in it a row for each model and a column for each seed.

    Args:
        drawn: by name of the model ``(P, S, 3, H, W)`` in [0, 1]; sizes may differ between models.

    Raises:
        MissingExtra: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtra("a grid of images", "images") from None
    font = ImageFont.load_default(14)
    large = {name: _enlarged(images) for name, images in drawn.items()}
    side = max(images.shape[-1] for images in large.values())
    left = max(int(font.getlength(name)) for name in drawn) + 2 * _GAP
    heights = [images.shape[-2] + _GAP for images in large.values()]
    block = 2 * _LINE + sum(heights)
    width = max(left + len(seeds) * (side + _GAP), *(int(font.getlength(p)) + 2 * _GAP for p in prompts), 1)
    sheet = Image.new("RGB", (width, len(prompts) * block), "white")
    pen = ImageDraw.Draw(sheet)
    for place, prompt in enumerate(prompts):
        top = place * block
        pen.text((_GAP, top + 3), prompt or "(the empty prompt)", _INK, font)
        for column, seed in enumerate(seeds):
            pen.text((left + column * (side + _GAP), top + _LINE + 3), f"seed {seed}", _FAINT, font)
        top += 2 * _LINE
        for (name, images), height in zip(large.items(), heights, strict=True):
            pen.text((_GAP, top), name, _INK, font)
            for column, image in enumerate(images[place]):
                pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
                sheet.paste(pixels, (left + column * (side + _GAP), top))
            top += height
    return sheet


def check_suffix(path: Path) -> str:
    """The format that the name of a picture asks for.

    Raises:
        ConfigError: none that is known.
    """
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"'{path}' is no name of an image. Name a .png, .jpg or .webp file.", "output")
    return kind


def write_grid(sheet: Image, path: Path) -> None:
    """Writes the picture; the suffix says in which format.

    Raises:
        ConfigError: as ``check_suffix``.
        RunError: it cannot be written.
    """
    buffer = io.BytesIO()
    sheet.save(buffer, check_suffix(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror}. Choose another place.") from None


def _enlarged(images: Tensor) -> Tensor:
    """As bytes, every pixel a square of the same whole number of pixels."""
    times = max(1, -(-SIDE // min(images.shape[-2:])))
    found = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return found.repeat_interleave(times, -1).repeat_interleave(times, -2)
