"""Charts of what stands behind single scores: ROC curves, relearning, depth; None where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from expunge.evaluation.table import Row, Table
from expunge.report import layout, style
from expunge.report.charts import Marks, mark, shown
from expunge.report.layout import Column
from expunge.report.style import INK, MUTED, RETRAINED

ACROSS = 3
"""Panels side by side."""

_DASHES = ("-", "--", ":", "-.")

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One line of a panel; ``row`` is None for the mean of the retrained models."""

    row: Row | None
    points: Points


@dataclass(frozen=True)
class Panel:
    column: Column
    curves: list[Curve]
    details: Mapping[str, Any]


def roc(table: Table, given: Marks, name: str) -> str | None:
    """True against false positives of every attack, both axes logarithmic; the diagonal is guessing."""
    panels = _panels(table, "roc")
    ends = {panel.column.id: _start(panel) for panel in panels}
    drawn = [
        Panel(p.column, [Curve(c.row, _above(c.points, ends[p.column.id])) for c in p.curves], p.details)
        for p in panels
    ]

    def finish(axes: Axes, panel: Panel) -> None:
        start = ends[panel.column.id]
        axes.plot([start, 1], [start, 1], color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        axes.set(xscale="log", yscale="log", xlim=(start, 1.1), ylim=(start, 1.1))
        axes.set(xlabel="false positives", ylabel="true positives")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(10, numticks=6))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
            axis.set_minor_formatter(NullFormatter())

    return _draw(drawn, given, name, "ROC curves of the attacks, logarithmic axes", finish)


def _start(panel: Panel) -> float:
    """Where the axes begin: the decade of the smallest rate that is not zero, at most four before 1."""
    rates = [value for curve in panel.curves for point in curve.points for value in point if value > 0]
    smallest = max(1e-4, min(rates, default=0.1))
    return float(10 ** math.floor(math.log10(smallest) + 1e-9)) if smallest < 0.1 else 0.1


def _above(points: Points, start: float) -> Points:
    """The points on logarithmic axes: of those left of their start the highest stands at the edge."""
    left = max((y for x, y in points if x <= start), default=None)
    edge = [] if left is None else [(start, max(left, start))]
    return edge + [(x, max(y, start)) for x, y in points if x > start]


def relearning(table: Table, given: Marks, name: str) -> str | None:
    """How quickly every model learns again."""

    def finish(axes: Axes, panel: Panel) -> None:
        axes.set(xlabel=panel.details.get("x_label", ""), ylabel=panel.details.get("y_label", ""))

    return _draw(_panels(table, "curve"), given, name, "curves of relearning", finish)


def depth(table: Table, given: Marks, name: str) -> str | None:
    """A score layer by layer, from the input to the output."""
    layers = {p.column.id: list(p.details["layers"]) for p in _panels(table, "layers")}

    def finish(axes: Axes, panel: Panel) -> None:
        names = layers[panel.column.id]
        axes.set_xticks(range(len(names)), [shown(layer, 18) for layer in names])
        axes.set(ylabel=panel.column.label)
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")

    return _draw(_panels(table, "layers"), given, name, "scores by layer", finish, markers=True)


def _panels(table: Table, key: str) -> list[Panel]:
    found = []
    for column in layout.columns(table).values():
        rows = [row for row in layout.rows(table) if row.role != "control"]
        held = {row.name: row.scores[column.id].details for row in rows if column.id in row.scores}
        curves = [
            Curve(row, points)
            for row in rows
            if (points := _points(held.get(row.name, {}).get(key), key, held))
        ]
        if not curves:
            continue
        details = next(held[row.name] for row in rows if held.get(row.name, {}).get(key))
        together = _points(details.get("retrained_curve"), "curve", held) if key == "curve" else []
        if together and not any(curve.row and curve.row.role == "retrained" for curve in curves):
            curves.append(Curve(None, together))
        found.append(Panel(column, curves, details))
    return found


def _points(value: Any, key: str, held: Mapping[str, Mapping[str, Any]]) -> Points:
    """Finite points; those of layers stand at the places of their names in the first model that has any."""
    if not value:
        return []
    if key != "layers":
        pairs = [(float(x), float(y)) for x, y in value]
    else:
        names = list(next(item["layers"] for item in held.values() if item.get("layers")))
        pairs = [(float(names.index(layer)), float(y)) for layer, y in value.items() if layer in names]
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def _draw(
    panels: Sequence[Panel],
    given: Marks,
    name: str,
    description: str,
    finish: Callable[[Axes, Panel], None],
    markers: bool = False,
) -> str | None:
    if not panels:
        return None
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    with style.style():
        entries = _entries(panels, given, markers)
        beside = 6 if across > 1 else 2
        drawn = style.figure(0.5 + 3.2 * across, 2.9 * down + 0.4 + 0.2 * -(-len(entries) // beside))
        grid = drawn.subplots(down, across, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(panels):
                axes.set_visible(False)
                continue
            panel = panels[index]
            for curve in panel.curves:
                axes.plot(*zip(*curve.points, strict=True), **_line(curve, given, markers))
            axes.set_title(f"{panel.column.label}\n{panel.column.variant}".strip(), size=9, color=INK)
            finish(axes, panel)
        drawn.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=beside,
            frameon=False,
            fontsize=8.5,
        )
        return style.to_svg(drawn, name, description)


def _line(curve: Curve, given: Marks, markers: bool) -> dict[str, Any]:
    """Colour as in the other charts; the original is dashed, and so are methods that share a colour."""
    row = curve.row
    color = RETRAINED if row is None else mark(row, given)[0]
    unlearned = row is not None and row.role == "unlearned"
    nth = list(given).index(row.name) // len(style.PALETTE) if row is not None and unlearned else 0
    return {
        "color": color,
        "linestyle": (0, (5, 1.5)) if row is not None and row.role == "original" else _DASHES[nth % 4],
        "linewidth": 1.3 if unlearned else 1.8,
        "alpha": 0.9,
        "zorder": 3 if unlearned else 4,
        "marker": "o" if markers else None,
        "markersize": 3,
    }


def _entries(panels: Sequence[Panel], given: Marks, markers: bool) -> dict[str, Line2D]:
    """The legend: the original, all retrained models together, and each method."""
    entries: dict[str, Line2D] = {}
    for panel in panels:
        for curve in panel.curves:
            row = curve.row
            retrained = row is None or row.role == "retrained"
            label = "retrained" if retrained or row is None else shown(row.name)
            entries.setdefault(label, Line2D([], [], **_line(curve, given, markers)))
    return entries
