"""A report as text for the terminal, and as CSV."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from expunge.evaluation.report import Report
from expunge.evaluation.table import HEADROOM, Row, Table
from expunge.report import layout, summary, wording
from expunge.report.files import write_whole
from expunge.report.layout import Cell, Column

NAME_WIDTH = 24
LEGEND = (
    "How to read a cell: value [95 % interval] distance. The distance is that from the mean of the retrained "
    "models, in units of the noise between them (σ); within ±2σ a model is as near to retraining as another "
    "honest retrain. 'No headroom': doing nothing is that near as well, so being near shows no forgetting."
)
FIELDS = (
    *("forget_set", "model", "role", "metric", "value", "low", "high", "n", "unit", "target"),
    *("gap", "noise_units", "retrained", "noise", "verdict", "reason"),
)


def to_text(report: Report, width: int | None = None) -> str:
    """The whole report without colour codes; as wide as the terminal, between 60 and 160 columns."""
    if width is None:
        width = min(max(shutil.get_terminal_size((120, 24)).columns, 60), 160)
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        print_report(report, console)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def print_report(report: Report, console: Console) -> None:
    """The summary, then for each forget set its finding, its table and what is missing from it."""
    console.print(Text(report.name, style="bold"))
    for sentence in summary.overview(report):
        console.print(Text(sentence))
    for table in report.tables:
        console.print()
        _print_table(table, console)
    console.print()
    console.print(Text(LEGEND, style="dim"))
    console.print(Text(summary.CAVEAT, style="dim"))


def _print_table(table: Table, console: Console) -> None:
    found = summary.finding(table)
    share = f"{table.size / table.train_size:.1%}" if table.train_size else "?"
    size = f"{wording.counted(table.size, 'example')} of {table.train_size:,} ({share})"
    console.rule(Text(table.name, style="bold"), align="left", style="dim")
    shared = "".join(f" {part:.0%} of them are shared with {other}." for other, part in table.overlap.items())
    console.print(Text(f"{size}: {table.description}.{shared}"))
    console.print(Text(f"{found.headline}.", style="bold green" if found.nearest else "bold yellow"))
    console.print(Text(" ".join(found.sentences)))
    console.print()
    for group in layout.groups(table):
        for block in _blocks(table, group.columns, console.width):
            console.print(_grid(table, group.title, block))
    for line in _notes(table):
        console.print(line)


def _notes(table: Table) -> Iterator[RenderableType]:
    for heading, sentence in layout.no_headroom(table):
        yield _note(f"{heading}: {sentence}")
    for what, reason in layout.not_computed(table):
        yield _note(f"{what} not computed: {reason}")
    for name, error in layout.failed(table):
        yield _note(f"{name} failed: {error}", "red")


def _note(text: str, style: str = "") -> RenderableType:
    line = Grid.grid(padding=(0, 1, 0, 0))
    line.add_row(Text("•"), Text(text, style=style))
    return Padding(line, (0, 0, 0, 1))


def _blocks(table: Table, columns: tuple[Column, ...], width: int) -> list[list[Column]]:
    """As many columns side by side as fit; the others follow in the next block."""
    room = width - 2 - min(NAME_WIDTH, max(len(row.name) for row in table.rows))
    blocks: list[list[Column]] = []
    left = 0
    for column in columns:
        cells = [text.plain for text in _texts(table, column)]
        needed = 2 + max(len(text) for text in (*cells, *_heading(column).plain.split("\n")))
        if not blocks or needed > left:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= needed
    return blocks


def _grid(table: Table, title: str, columns: list[Column]) -> RenderableType:
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="", collapse_padding=True)
    grid.add_column(Text(title, style="bold"), max_width=NAME_WIDTH, overflow="fold", vertical="bottom")
    for column in columns:
        grid.add_column(_heading(column), no_wrap=True)
    texts = [_texts(table, column) for column in columns]
    for index, row in enumerate(table.rows):
        last = index + 1 == len(table.rows) or table.rows[index + 1].role != row.role
        name = Text(row.name, style="bold" if row.role == "unlearned" else "")
        grid.add_row(name, *(column[index] for column in texts), end_section=last)
    return grid


def _heading(column: Column) -> Text:
    text = Text(f"{column.label} ({column.symbol})", style="bold")
    if column.variant:
        text.append(f"\n{column.variant}", style="not bold")
    if not column.has_headroom:
        text.append("\nno headroom", style="yellow not bold")
    return text


def _texts(table: Table, column: Column) -> list[Text]:
    """The cells of one column, its values, intervals and distances each aligned."""
    cells = [layout.cell(table, row, column) for row in table.rows]
    shown = [cell for cell in cells if cell and cell.reason is None]
    widths = [
        max((len(part) for part in parts), default=0)
        for parts in (
            [cell.value for cell in shown],
            [cell.interval for cell in shown],
            [cell.sigma for cell in shown],
        )
    ]
    return [_text(row, cell, widths) for row, cell in zip(table.rows, cells, strict=True)]


def _text(row: Row, cell: Cell | None, widths: list[int]) -> Text:
    if cell is None:
        return Text(
            "failed" if row.error is not None else "–", style="red" if row.error is not None else "dim"
        )
    if cell.reason is not None:
        return Text("not computed", style="dim")
    text = Text(f"{cell.value:>{widths[0]}}")
    if widths[1]:
        text.append(f" {cell.interval:<{widths[1]}}", style="dim")
    if widths[2]:
        near = cell.units is not None and abs(cell.units) <= HEADROOM
        text.append(
            f" {cell.sigma:>{widths[2]}}", style="" if row.role != "unlearned" else "green" if near else "red"
        )
    return text


def write_csv(report: Report, path: Path) -> Path:
    """One line for each forget set, model and metric; values as they are, fractions not in percent."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
    writer.writeheader()
    for table in report.tables:
        for row in table.rows:
            writer.writerows(_records(table, row))
    return write_whole(path, stream.getvalue())


def _records(table: Table, row: Row) -> Iterator[dict[str, object]]:
    base = {"forget_set": table.name, "model": row.name, "role": row.role}
    if row.error is not None:
        yield {**base, "reason": row.error}
    for id_, score in row.scores.items():
        anchor = table.anchors.get(id_)
        low, high = score.interval or (None, None)
        yield {
            **base,
            "metric": id_,
            "value": None if math.isnan(score.value) else score.value,
            "low": low,
            "high": high,
            "n": score.n,
            "unit": score.unit,
            "target": score.target,
            "gap": table.gap(row, id_),
            "noise_units": table.noise_units(row, id_),
            "retrained": anchor.retrained if anchor else None,
            "noise": anchor.noise if anchor else None,
            "verdict": table.no_headroom(id_),
            "reason": score.reason,
        }
