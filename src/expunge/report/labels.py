"""Names beside points, none over another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import Bbox

from expunge.report.style import GRID

_RADII = (7, 16, 28, 42, 60, 84)
_ANGLES = tuple(range(0, 360, 30))
_SIZE = 8.5

Boxes = np.ndarray[Any, Any]
"""Left, lower, right and upper edge, ``(…, 4)``."""


@dataclass(frozen=True)
class Label:
    """A point in data coordinates, its name and the colour to write it in."""

    x: float
    y: float
    text: str
    color: str


def place(axes: Axes, labels: Sequence[Label], obstacles: Sequence[Bbox] = ()) -> None:
    """Writes every label at the nearest free place, with a thin line back where that is not beside it.

    The axes' limits and layout must be final.
    """
    points = [axes.transData.transform((label.x, label.y)) for label in labels]
    taken = [box.extents for box in obstacles] + [[x - 5, y - 5, x + 5, y + 5] for x, y in points]
    boxes = np.array(taken, dtype=float).reshape(-1, 4)
    for label, (x, y) in zip(labels, points, strict=True):
        box = _best(x, y, *_extent(label.text), np.array(axes.bbox.extents), boxes)
        boxes = np.vstack([boxes, box])
        _write(axes, label, x, y, Bbox.from_extents(*box))


def _extent(text: str) -> tuple[float, float]:
    renderer = RendererAgg(10, 10, 72)
    width, height, _ = renderer.get_text_width_height_descent(
        text, FontProperties(family="DejaVu Sans", size=_SIZE), ismath=False
    )
    return width + 2, height + 1


def _best(x: float, y: float, width: float, height: float, inside: Boxes, taken: Boxes) -> Boxes:
    """The first free box around the point, or the one that covers least; ``(4,)``, as all boxes here."""
    radius, angle = (grid.ravel() for grid in np.meshgrid(_RADII, np.radians(_ANGLES), indexing="ij"))
    left = x + (radius + width / 2) * np.cos(angle) - width / 2
    low = y + (radius + height / 2) * np.sin(angle) - height / 2
    boxes = np.stack([left, low, left + width, low + height], 1)
    cost = _overlap(boxes[:, None], taken[None]).sum(1)
    cost += 4 * (width * height - _overlap(boxes, inside))
    free = np.flatnonzero(cost < 1e-6)
    return boxes[free[0] if len(free) else cost.argmin()]  # type: ignore[no-any-return]


def _overlap(a: Boxes, b: Boxes) -> Boxes:
    """The common area of boxes ``(…, 4)``."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return sides.clip(min=0).prod(-1)  # type: ignore[no-any-return]


def _write(axes: Axes, label: Label, x: float, y: float, box: Bbox) -> None:
    """Aligned on the side that faces the point, so that another font's widths do no harm."""
    middle = (box.x0 + box.x1) / 2
    side: Literal["left", "right", "center"] = "left" if box.x0 >= x else "right" if box.x1 <= x else "center"
    at = (box.x0 if side == "left" else box.x1 if side == "right" else middle, (box.y0 + box.y1) / 2)
    tx, ty = axes.transData.inverted().transform(at)
    axes.text(tx, ty, label.text, ha=side, va="center", size=_SIZE, color=label.color, zorder=6)
    nearest = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
    if math.dist(nearest, (x, y)) > 14:
        ex, ey = axes.transData.inverted().transform(nearest)
        axes.plot([label.x, ex], [label.y, ey], color=GRID, linewidth=0.8, zorder=2.5)
