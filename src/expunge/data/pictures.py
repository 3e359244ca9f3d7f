"""Thumbnails of examples, for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from expunge.data.arrays import Data
from expunge.data.captions import CaptionedImages
from expunge.errors import DataError, RunError

COUNT = 16
"""Examples shown of a forget set, evenly spaced over its ids."""


def pictures(
    data: Data,
    class_names: Sequence[str] | None = None,
    count: int = COUNT,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> list[dict[str, str]]:
    """``{"id", "label", "png"}`` of some examples; empty where the inputs are no images.

    Images are ``(C, H, W)`` with 1 or 3 channels, uint8 or floats in [0, 1]; PNG in base64. The label is the
    class, or the caption.

    Args:
        decode: makes such images of inputs ``(N, …)`` that are something else, latents or pixels in [−1, 1].
    """
    rows = torch.linspace(0, len(data) - 1, min(count, len(data))).round().long()
    few = data.subset(data.ids[rows])
    labels = _labels(few, class_names)
    try:
        images = few.column("inputs")
    except DataError:
        return []
    if decode is not None and images.ndim == 4:
        images = decode(images).detach().float().cpu()
    if labels is None or images.ndim != 4 or images.shape[1] not in (1, 3):
        return []
    if images.is_floating_point():
        images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return [
        {"id": str(id_), "label": label, "png": png(image)}
        for id_, image, label in zip(few.ids.tolist(), images, labels, strict=True)
    ]


def _labels(data: Data, class_names: Sequence[str] | None) -> list[str] | None:
    """Captions, or else classes; None where there is neither."""
    if isinstance(data, CaptionedImages):
        return list(data.captions)
    try:
        targets = data.column("targets")
    except DataError:
        return None
    if targets.ndim != 1:
        return None
    return [str(class_names[label]) if class_names else str(label) for label in targets.tolist()]


def sheet(data: Data, path: str | Path, title: str, class_names: Sequence[str] | None = None) -> None:
    """Writes one picture of up to 100 examples, each over its label; the suffix says which format.

    Raises:
        DataError: the examples are no images.
        RunError: the file cannot be written.
    """
    found = pictures(data, class_names, 100)
    if not found:
        raise DataError("these examples are no images of shape (C, H, W), so they cannot be drawn.")
    from matplotlib.figure import Figure
    from PIL import Image

    columns = min(10, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(columns, 1.25 * lines + 0.5), layout="constrained")
    figure.suptitle(f"{len(data)} examples: {title}", fontsize=10)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, one in zip(axes, found, strict=False):
        axis.imshow(Image.open(io.BytesIO(base64.b64decode(one["png"]))), cmap="gray")
        axis.set_title(one["label"], fontsize=8)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror}.") from None
    except ValueError as error:
        raise RunError(f"cannot write '{path}': {error}. Name a .png, .svg or .pdf file.") from None


def png(image: Tensor) -> str:
    """An image ``(C, H, W)`` uint8 as PNG, in base64."""
    from PIL import Image

    pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
