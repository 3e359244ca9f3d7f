"""The charts of a report as inline SVG; None where there is nothing to draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from expunge.evaluation.report import Report
from expunge.evaluation.table import HEADROOM, Row, Table
from expunge.report import layout, style, summary, wording
from expunge.report.layout import Column
from expunge.report.style import INK, MUTED, ORIGINAL, RETRAINED

HATCH = "#8d8a85"

WIDE = 10
"""With more metrics than this a heat map has the models across."""

Marks = dict[str, tuple[str, str]]
"""Colour and marker of each method, the same in all charts of a report."""


@dataclass(frozen=True)
class Panel:
    """One small picture of several that share their axes."""

    title: str
    svg: str


def marks(report: Report) -> Marks:
    names = dict.fromkeys(row.name for table in report.tables for row in table.by_role("unlearned"))
    return {
        name: (style.PALETTE[i % len(style.PALETTE)], style.MARKERS[i // len(style.PALETTE) % 7])
        for i, name in enumerate(names)
    }


def mark(row: Row, given: Marks) -> tuple[str, str]:
    if row.role == "unlearned":
        return given[row.name]
    return {"original": (ORIGINAL, "D"), "control": (MUTED, "x")}.get(row.role, (RETRAINED, "o"))


def shown(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


# ------------------------------------------------------------------------------- loss histograms


def histograms(table: Table, given: Marks, name: str) -> list[Panel]:
    """The losses of forget and test examples, one panel for each model; the share in every bin."""
    rows = [row for row in table.rows if any(sum(counts) for counts in row.histograms.values())]
    references = [row for row in rows if row.role == "retrained"][:1]
    rows = (
        [row for row in rows if row.role == "original"]
        + references
        + [row for row in rows if row.role == "unlearned"]
    )
    last = max((_last(counts) for row in rows for counts in row.histograms.values()), default=0)
    if not rows or len(table.bins) < 2:
        return []
    with style.style():
        return [
            Panel(row.name, _histogram(table, row, min(last + 1, len(table.bins) - 1), given, f"{name}-{i}"))
            for i, row in enumerate(rows)
        ]


def _last(counts: list[int]) -> int:
    return max((i for i, count in enumerate(counts) if count), default=0)


def _histogram(table: Table, row: Row, bins: int, given: Marks, name: str) -> str:
    drawn = style.figure(2.6, 1.75, (0.5, 0.42, 0.12, 0.06))
    axes = drawn.add_subplot()
    edges = table.bins[: bins + 1]
    color = mark(row, given)[0]
    floor = min(0.4 / max(1, sum(counts)) for counts in row.histograms.values()) * 100
    for part, filled in (("forget", True), ("test", False)):
        counts = row.histograms.get(part)
        if not counts or not sum(counts):
            continue
        shares = [100 * count / sum(counts) for count in counts[:bins]]
        if filled:
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.45, baseline=floor / 10)
        else:
            axes.stairs(shares, edges, color=INK, linewidth=1.1, baseline=floor / 10)
    axes.set_yscale("log")
    axes.set_ylim(0.04, 150)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_locator(LogLocator(10, numticks=4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("loss (nats)")
    axes.grid(axis="x", visible=False)
    return style.to_svg(drawn, name, f"losses of the forget and the test examples, {row.name}")


# -------------------------------------------------------------------------------------- heat maps


@dataclass(frozen=True)
class Tile:
    """One field of a heat map; ``step`` chooses its colour, ``None`` leaves it empty."""

    text: str
    step: int | None
    hatched: bool = False


def average_gaps(report: Report, name: str) -> str | None:
    """The average gap of every method on every forget set, hatched where nothing can be shown."""
    found = [(table, layout.average_gap(layout.columns(table))) for table in report.tables]
    rows = ["original", "another retraining", *marks(report)]
    tiles = [[_gap_tile(table, column, row) for table, column in found] for row in rows[2:]]
    tiles = [[_original_tile(*pair) for pair in found], [_floor_tile(*pair) for pair in found], *tiles]
    if len(rows) < 3 or all(column is None for _, column in found):
        return None
    heading = [table.name for table, _ in found]
    return _heat_map(rows, heading, tiles, name, "average gap from retraining, methods by forget sets")


def _original_tile(table: Table, column: Column | None) -> Tile:
    return _tile(table, column, next(iter(table.by_role("original")), None))


def _floor_tile(table: Table, column: Column | None) -> Tile:
    if column is None or column.anchor is None:
        return Tile("not computed", None)
    return Tile(column.quantity(column.anchor.retrained), 0)


def _gap_tile(table: Table, column: Column | None, name: str) -> Tile:
    return _tile(table, column, next((r for r in table.by_role("unlearned") if r.name == name), None))


def _tile(table: Table, column: Column | None, row: Row | None) -> Tile:
    if row is None or column is None:
        return Tile("", None)
    score = row.scores.get(column.id)
    if score is None or score.reason is not None:
        return Tile("failed" if row.error is not None else "not computed", None)
    floor = column.anchor.retrained if column.anchor else 0.0
    step = sum(score.value - floor > bound for bound in (0.01, 0.03, 0.06, 0.12, 0.24))
    return Tile(column.quantity(score.value), step, not summary.has_headroom(table))


def distances(table: Table, name: str) -> str | None:
    """The distance of every model from retraining on every metric, in units of noise.

    Many metrics stand below each other, few beside each other.
    """
    columns = [c for c in layout.columns(table).values() if c.anchor and not c.is_cost]
    rows = [row for row in layout.rows(table) if row.role != "retrained"]
    if not columns or not rows:
        return None
    tiles = [[_distance_tile(table, row, column) for column in columns] for row in rows]
    names, description = [row.name for row in rows], "distance from retraining in units of noise"
    if len(columns) > WIDE:
        across = [list(line) for line in zip(*tiles, strict=True)]
        return _heat_map([column.heading for column in columns], names, across, name, description, limit=44)
    heading = [f"{column.label}\n{column.variant}" if column.variant else column.label for column in columns]
    return _heat_map(names, heading, tiles, name, description)


def _distance_tile(table: Table, row: Row, column: Column) -> Tile:
    units = table.noise_units(row, column.id)
    if units is None:
        return Tile("failed" if row.error is not None else "–", None)
    step = sum(abs(units) > bound for bound in (HEADROOM, 5, 10, 20, 40))
    text = wording.sigma(units).removesuffix("σ").replace(" ", "")
    return Tile(text, step, not column.has_headroom and abs(units) <= HEADROOM)


def _heat_map(
    rows: list[str],
    columns: list[str],
    tiles: list[list[Tile]],
    name: str,
    description: str,
    limit: int = 26,
) -> str:
    tall = max(len(column) for heading in columns for column in heading.split("\n"))
    slanted = tall > 11 and len(columns) > 4
    with style.style():
        width = (1.9 if limit < 40 else 2.7) + len(columns) * (0.74 if slanted else 1.15)
        drawn = style.figure(width, 0.42 + 0.3 * len(rows) + (0.055 * tall if slanted else 0))
        axes = drawn.add_subplot()
        for y, line in enumerate(tiles):
            for x, tile in enumerate(line):
                _draw_tile(axes, x, y, tile)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.xaxis.tick_top()
        axes.set_xticks([i + 0.5 for i in range(len(columns))], [shown(c, 44) for c in columns])
        if slanted:
            for label in axes.get_xticklabels():
                label.set(rotation=40, ha="left", rotation_mode="anchor")
        axes.set_yticks([i + 0.5 for i in range(len(rows))], [shown(row, limit) for row in rows])
        axes.tick_params(length=0, labelcolor=INK, labelsize=8.5)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return style.to_svg(drawn, name, description)


def _draw_tile(axes: Axes, x: int, y: int, tile: Tile) -> None:
    pad = 0.02
    place = {"xy": (x + pad, y + 2 * pad), "width": 1 - 2 * pad, "height": 1 - 4 * pad, "linewidth": 0}
    color, ground = MUTED, None
    if tile.step is not None:
        _inside(axes, Rectangle(**place, facecolor=style.STEPS[tile.step]))  # type: ignore[arg-type]
        color = style.DARK_TEXT if tile.step < 4 else style.LIGHT_TEXT
    if tile.hatched and tile.step is not None:
        _inside(axes, Rectangle(**place, facecolor="none", edgecolor=HATCH, hatch="////"))  # type: ignore[arg-type]
        ground = {"facecolor": style.STEPS[tile.step], "linewidth": 0, "boxstyle": "square,pad=0.15"}
    said = axes.text(x + 0.5, y + 0.5, tile.text, ha="center", va="center", size=8, color=color, bbox=ground)
    said.set_in_layout(False)


def _inside(axes: Axes, field: Rectangle) -> None:
    """Draws a field of a map whose limits are known; it is not measured to lay the figure out."""
    field.set_in_layout(False)
    axes.add_artist(field)


# ------------------------------------------------------------------------------------------- cost


def cost(table: Table, given: Marks, name: str) -> str | None:
    """The time of each method as a ratio to one retraining, the quickest first."""
    columns = layout.columns(table).values()
    ratio = next((column for column in columns if column.is_cost and column.unit == "ratio"), None)
    seconds = next((column for column in columns if column.is_cost and column.unit == "seconds"), None)
    if ratio is None:
        return None
    found = [
        (value, row) for row in table.by_role("unlearned") if (value := _value(row, ratio)) and value > 0
    ]
    if not found:
        return None
    found.sort(key=lambda item: item[0])
    with style.style():
        drawn = style.figure(5.6, 0.85 + 0.29 * len(found))
        axes = drawn.add_subplot()
        logarithmic = max(1.0, found[-1][0]) / found[0][0] > 12
        for y, (value, row) in enumerate(found):
            start = 1.0 if logarithmic else 0.0
            axes.barh(y, value - start, left=start, height=0.62, color=given[row.name][0], alpha=0.85)
            time = _value(row, seconds) if seconds else None
            text = wording.quantity(value, ratio.unit)  # each with its own digits, on a logarithmic axis
            text += f" ({wording.duration(time)})" if time is not None else ""
            side, shift = ("right", -5) if value < start else ("left", 5)
            axes.annotate(
                text, (value, y), (shift, 0), textcoords="offset points", va="center", ha=side, size=8
            )
        axes.axvline(1, color=INK, linewidth=1.1)
        axes.set_yticks(range(len(found)), [shown(row.name) for _, row in found])
        _cost_axis(axes, found[0][0], found[-1][0], logarithmic)
        return style.to_svg(drawn, name, "time of each method as a ratio to one retraining")


def _value(row: Row, column: Column) -> float | None:
    score = row.scores.get(column.id)
    return score.value if score is not None and math.isfinite(score.value) else None


def _cost_axis(axes: Axes, low: float, high: float, logarithmic: bool) -> None:
    axes.invert_yaxis()
    axes.set_xlabel("time ÷ time of one retraining (the line)" + (", logarithmic" if logarithmic else ""))
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8.5)
    axes.grid(axis="y", visible=False)
    if logarithmic:
        axes.set_xscale("log")
        room = (max(1.0, high) / low) ** 0.45
        axes.set_xlim(low / room, max(1.25, high * room if high > 1 else 0))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, max(1.0, high) * 1.3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
