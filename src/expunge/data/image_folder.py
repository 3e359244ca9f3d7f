"""Folders of images with captions, as ``imagefolder`` of Hugging Face datasets has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.errors import DataError, MissingExtra

METADATA = "metadata.jsonl"
"""One JSON object a line: ``{"file_name": "0001.png", "text": "a star image in mosaic style"}``."""

FILE = "file_name"


def read_captions(folder: Path | str, column: str = "text") -> list[tuple[Path, str]]:
    """The images of a folder and their captions, in the order of its ``metadata.jsonl``; none is opened.

    Args:
        column: which one holds the caption.

    Raises:
        DataError: as ``read_metadata``.
    """
    return [(path, caption) for path, caption, _ in read_metadata(folder, column)]


def read_metadata(folder: Path | str, column: str = "text") -> list[tuple[Path, str, dict[str, Any]]]:
    """Likewise, with all that a line says.

    Raises:
        DataError: no folder or no metadata, a malformed line, an image that is not there, a caption that is
            missing or empty.
    """
    folder = Path(folder)
    path = folder / METADATA
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is no UTF-8"
        raise DataError(
            f"cannot read '{path}': {said}. Give a folder of images with a {METADATA}, one line such as "
            '{"file_name": "1.png", "text": "a star"} for each image.'
        ) from None
    found = [
        _entry(folder, line, f"'{path}', line {number}", column)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise DataError(f"'{path}' is empty. Write one line for each image.")
    return found


def read_images(paths: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """Images as ``(N, 3, H, W)`` in [0, 1]: scaled until they cover ``size = (H, W)``, cut in the middle.

    Raises:
        DataError: a file that is no image.
        MissingExtra: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise MissingExtra("a folder of images", "images") from None
    height, width = size
    found = torch.empty(len(paths), 3, height, width)
    for row, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            said = getattr(error, "strerror", None) or "it is damaged or no image"
            raise DataError(f"cannot read '{path}': {said}. Restore the file or take its line out.") from None
        found[row] = torch.from_numpy(np.array(fitted, dtype=np.float32)).permute(2, 0, 1) / 255
    return found


def encode_images(
    paths: Sequence[Path], size: tuple[int, int], encode: Callable[[Tensor], Tensor], at_once: int = 16
) -> Tensor:
    """What an autoencoder makes of images, so many at once, ``(N, C, h, w)`` float32 on the CPU.

    Args:
        encode: takes ``(n, 3, H, W)`` in [0, 1].

    Raises:
        DataError: as ``read_images``, or latents that are NaN or infinite.
    """
    found = []
    for start in range(0, len(paths), at_once):
        few = paths[start : start + at_once]
        latents = encode(read_images(few, size)).float().cpu()
        bad = (~torch.isfinite(latents).flatten(1).all(1)).nonzero()
        if len(bad):
            raise DataError(
                f"the pipeline's autoencoder makes NaN or infinite latents of '{few[int(bad[0])]}'. Give a "
                "pipeline whose autoencoder works in float32, or take the image out."
            )
        found.append(latents)
    return torch.cat(found)


def _entry(folder: Path, line: str, where: str, column: str) -> tuple[Path, str, dict[str, Any]]:
    try:
        value: Any = json.loads(line)
    except ValueError:
        raise DataError(f"{where} is no JSON. Write one object a line.") from None
    name, caption = (value.get(key) if isinstance(value, dict) else None for key in (FILE, column))
    for key, entry in ((FILE, name), (column, caption)):
        if not isinstance(entry, str) or not entry.strip():
            raise DataError(f"{where} has no '{key}'. Each line needs '{FILE}' and '{column}'.")
    path = folder / str(name)
    if not path.is_file():
        raise DataError(f"{where}: there is no image '{path}'. Restore the file or take the line out.")
    return path, " ".join(str(caption).split()), value
