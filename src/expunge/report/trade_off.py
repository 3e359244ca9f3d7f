"""Forgetting against utility: where every model stands beside the place where retraining lands."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from expunge.evaluation.table import Row, Table
from expunge.report import labels, layout, style, wording
from expunge.report.charts import Marks, mark, shown
from expunge.report.labels import Label
from expunge.report.layout import Column
from expunge.report.style import BAND, MUTED, PAPER, RETRAINED

# How far from retraining the axes reach, in distances of the original, of the typical method, of noise.
_REACH = (2.0, 3.5, 12.0)


@dataclass(frozen=True)
class Spot:
    """Where a model stands in the units of the axes; ``inside`` is False for one moved to the edge."""

    row: Row
    x: float
    y: float
    inside: bool = True


@dataclass(frozen=True)
class Axis:
    """One metric as an axis, its values in percent where they are fractions."""

    column: Column
    low: float
    high: float

    @classmethod
    def over(cls, column: Column, rows: Sequence[Row]) -> Axis:
        """Wide enough for retraining, doing nothing and all that is not far outside."""
        values = {row.name: value for row in rows if (value := at(row, column)) is not None}
        if column.anchor is None:
            low, high = min(values.values()), max(values.values())
        else:
            mean, noise = (item * scale(column) for item in (column.anchor.retrained, column.anchor.noise))
            methods = [abs(values[row.name] - mean) for row in rows if row.role == "unlearned"]
            original = abs(column.anchor.original * scale(column) - mean)
            typical = statistics.median(methods) if methods else 0.0
            reach = max(r * d for r, d in zip(_REACH, (original, typical, noise), strict=True))
            near = [value for value in values.values() if abs(value - mean) <= reach]
            low, high = min([*near, mean - 2 * noise]), max([*near, mean + 2 * noise])
        margin = 0.1 * (high - low) or 1.0
        return cls(column, low - margin, high + margin)

    @property
    def title(self) -> str:
        return wording.headed(self.column.heading, self.column.unit)

    def clip(self, value: float) -> float:
        """The value, or the nearest one that is a little inside the axis."""
        inset = 0.025 * (self.high - self.low)
        return min(max(value, self.low + inset), self.high - inset)


def trade_off(table: Table, given: Marks, name: str) -> str | None:
    """Utility on the test examples to the right, on the forget examples upwards.

    The bands are the mean of the retrained models ± one and two units of noise; a method should be
    where they cross. A model far outside stands at the edge with its values written beside it. Controls
    are left out.
    """
    columns = layout.columns(table)
    across, up = layout.utility(columns), layout.on_forget(columns)
    if across is None or up is None:
        return None
    judged = [row for row in table.rows if row.role != "control"]
    rows = [row for row in judged if at(row, across) is not None and at(row, up) is not None]
    if not rows:
        return None
    x, y = Axis.over(across, rows), Axis.over(up, rows)
    spots = [_spot(row, x, y) for row in rows]
    with style.style():
        drawn = style.figure(5.6, 4.3)
        axes = drawn.add_subplot(xlim=(x.low, x.high), ylim=(y.low, y.high), xlabel=x.title, ylabel=y.title)
        _bands(axes, x, y)
        for spot in spots:
            _draw(axes, spot, x, y, given)
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")
        labels.place(axes, _labels(spots, x, y, given), _obstacles(axes, spots, x, y))
        return style.to_svg(drawn, name, f"{x.title} and {y.title} of every model")


def scale(column: Column) -> float:
    return 100.0 if column.unit == "fraction" else 1.0


def at(row: Row, column: Column) -> float | None:
    """The value of a model on the axis of a metric."""
    score = row.scores.get(column.id)
    if score is None or not math.isfinite(score.value):
        return None
    return score.value * scale(column)


def _spot(row: Row, x: Axis, y: Axis) -> Spot:
    true = (row.scores[x.column.id].value * scale(x.column), row.scores[y.column.id].value * scale(y.column))
    inside = x.low <= true[0] <= x.high and y.low <= true[1] <= y.high
    return Spot(row, x.clip(true[0]), y.clip(true[1]), inside) if not inside else Spot(row, *true)


def _bands(axes: Axes, x: Axis, y: Axis) -> None:
    for axis, span, line in ((x, axes.axvspan, axes.axvline), (y, axes.axhspan, axes.axhline)):
        anchor = axis.column.anchor
        if anchor is None:
            continue
        mean, noise = anchor.retrained * scale(axis.column), anchor.noise * scale(axis.column)
        for width in (2, 1):
            span(mean - width * noise, mean + width * noise, color=BAND, alpha=0.16, linewidth=0, zorder=1)
        line(mean, color=BAND, linewidth=0.9, zorder=1.5)


def _draw(axes: Axes, spot: Spot, x: Axis, y: Axis, given: Marks) -> None:
    role = spot.row.role
    color, marker = mark(spot.row, given)
    if role == "unlearned" and spot.inside:
        for (low, high), horizontal in ((_ends(spot, x), True), (_ends(spot, y), False)):
            along = ([low, high], [spot.y, spot.y]) if horizontal else ([spot.x, spot.x], [low, high])
            axes.plot(*along, color=color, linewidth=1.0, alpha=0.55, zorder=3, solid_capstyle="butt")
    size = {"original": 7.0, "retrained": 4.5, "unlearned": 7.5}[role]
    edge = color if role == "retrained" else PAPER if spot.inside else color
    fill = color if spot.inside else "none"
    (point,) = axes.plot([spot.x], [spot.y], marker=marker, color=fill, markersize=size, zorder=4)
    point.set_markeredgecolor(edge)


def _ends(spot: Spot, axis: Axis) -> tuple[float, float]:
    """The interval of a model on one axis."""
    score = spot.row.scores[axis.column.id]
    low, high = score.interval or (score.value, score.value)
    return low * scale(axis.column), high * scale(axis.column)


def _labels(spots: list[Spot], x: Axis, y: Axis, given: Marks) -> list[Label]:
    found = []
    for spot in spots:
        if spot.row.role == "retrained":
            continue
        text = "original: doing nothing" if spot.row.role == "original" else shown(spot.row.name)
        if not spot.inside:
            values = [a.column.text(spot.row.scores[a.column.id].value) for a in (x, y)]
            text += f" (off the chart: {values[0]}, {values[1]})"
        found.append(Label(spot.x, spot.y, text, mark(spot.row, given)[0]))
    anchors = (x.column.anchor, y.column.anchor)
    if anchors[0] is not None and anchors[1] is not None:
        centre = (anchors[0].retrained * scale(x.column), anchors[1].retrained * scale(y.column))
        found.append(Label(*centre, "retrained", RETRAINED))
    return sorted(found, key=lambda label: label.color == MUTED)


def _obstacles(axes: Axes, spots: list[Spot], x: Axis, y: Axis) -> list[Bbox]:
    """What no label may cover: the retrained models' points and the intervals of the others."""
    boxes = []
    for spot in spots:
        cx, cy = axes.transData.transform((spot.x, spot.y))
        if spot.row.role == "retrained":
            boxes.append(Bbox.from_extents(cx - 4, cy - 4, cx + 4, cy + 4))
        elif spot.row.role == "unlearned" and spot.inside:
            left, bottom = axes.transData.transform((_ends(spot, x)[0], _ends(spot, y)[0]))
            right, top = axes.transData.transform((_ends(spot, x)[1], _ends(spot, y)[1]))
            boxes.append(Bbox.from_extents(left, cy - 1, right, cy + 1))
            boxes.append(Bbox.from_extents(cx - 1, bottom, cx + 1, top))
    return boxes
