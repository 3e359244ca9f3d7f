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
from expunge.evaluation.table import Row, Table
from expunge.evaluation.verdict import Verdict
from expunge.report import layout, summary, verdicts, wording
from expunge.report.files import write_whole
from expunge.report.layout import Cell, Column
from expunge.report.standing import standing

NAME_WIDTH = 24
LEGEND = (
    "How to read a cell: value [95 % interval] distance verdict. The distance is that from the mean of the "
    "retrained models, in units of the noise between them (σ). The verdict says whether the model is "
    "like one more honest retrain:",
    "  =  equivalent: the difference is shown to be within the margin",
    "  ≠  different: more than chance explains, over all metrics of the model together",
    "  ?  inconclusive: neither is shown; table.csv says what would decide it",
    "Headroom is the distance of doing nothing; where there is none, being equivalent shows no forgetting.",
)
FIELDS = (
    *("forget_set", "model", "role", "metric", "value", "low", "high", "n", "unit", "target"),
    *("gap", "noise_units", "retrained", "noise", "perfect", "headroom", "no_headroom"),
    *("verdict_kind", "difference_low", "difference_high", "margin"),
    *("p_different", "p_holm", "p_equivalent", "needs", "reason"),
)
_STYLES = {"equivalent": "green", "different": "red", "inconclusive": "yellow"}
_ROLE_STYLES = {"unlearned": "bold", "control": "dim"}


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
    for line in LEGEND:
        console.print(Text(line, style="dim"))
    console.print(Text(summary.CAVEAT, style="dim"))


def _print_table(table: Table, console: Console) -> None:
    found = summary.finding(table)
    share = f"{table.size / table.train_size:.1%}" if table.train_size else "?"
    size = f"{wording.counted(table.size, 'example')} of {table.train_size:,} ({share})"
    console.rule(Text(table.name, style="bold"), align="left", style="dim")
    shared = "".join(f" {part:.0%} of them are shared with {other}." for other, part in table.overlap.items())
    console.print(Text(f"{size}: {table.description.rstrip('.')}.{shared}"))
    console.print(Text(f"{found.headline}.", style="bold green" if found.nearest else "bold yellow"))
    console.print(Text(" ".join(found.sentences)))
    console.print()
    ranked = _ranking(table)
    if ranked is not None:
        console.print(ranked)
    for group in layout.groups(table):
        for block in _blocks(table, group.columns, console.width):
            console.print(_grid(table, group.title, block))
    for line in _notes(table):
        console.print(line)


def _ranking(table: Table) -> RenderableType | None:
    """Rank, average gap and verdicts of every model that has an average gap; None where none has."""
    found = standing(table)
    if not found.places:
        return None
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="bold")
    grid.add_column("Rank", justify="right", no_wrap=True)
    grid.add_column("model", max_width=NAME_WIDTH, overflow="fold")
    for heading in ("gap (%)", "95 % interval", *verdicts.MARKS.values()):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("")
    for place in [*found.places, *([found.original] if found.original else [])]:
        counted = verdicts.tally(table, place.row)
        kinds = (counted.equivalent, counted.different, counted.undecided) if counted else ("", "", "")
        remark = {"control": "control", "original": "doing nothing"}.get(place.row.role, "")
        if place.excluded and not remark:
            remark = "not ranked, see above"
        shown = (found.value(place), found.interval(place), *map(str, kinds), remark)
        style = _ROLE_STYLES.get(place.row.role, "") if place.rank else "dim"
        grid.add_row(found.rank(place) or "–", Text(place.row.name), *shown, style=style)
    return grid


def _notes(table: Table) -> Iterator[RenderableType]:
    for heading, sentence in layout.no_headroom(table):
        yield _note(f"{heading}: {sentence}")
    for heading, sentence in layout.notes(table):
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
    names = [row.name for row in table.rows] + [line.name for line in layout.footings(table, columns)]
    room = width - 2 - min(NAME_WIDTH, max(map(len, names)))
    blocks: list[list[Column]] = []
    left = 0
    for column in columns:
        cells = [text.plain for text in _texts(table, column)]
        cells += [line.texts[0] for line in layout.footings(table, [column])]
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
    rows, footings = layout.rows(table), layout.footings(table, columns)
    for index, row in enumerate(rows):
        last = index + 1 == len(rows) or rows[index + 1].role != row.role
        footed = last and row.role == "retrained" and footings
        name = Text(row.name, style=_ROLE_STYLES.get(row.role, ""))
        grid.add_row(name, *(column[index] for column in texts), end_section=last and not footed)
        for line in footings if footed else ():
            grid.add_row(line.name, *line.texts, style="dim italic", end_section=line is footings[-1])
    return grid


def _heading(column: Column) -> Text:
    text = Text(wording.headed(column.label, column.unit), style="bold")
    if column.variant:
        text.append(f"\n{column.variant}", style="not bold")
    if not column.has_headroom:
        text.append("\nno headroom", style="yellow not bold")
    return text


def _texts(table: Table, column: Column) -> list[Text]:
    """The cells of one column, its values, intervals and distances each aligned."""
    rows = layout.rows(table)
    cells = [layout.cell(table, row, column) for row in rows]
    shown = [cell for cell in cells if cell and cell.reason is None]
    widths = [
        max((len(part) for part in parts), default=0)
        for parts in (
            [cell.value for cell in shown],
            [cell.interval for cell in shown],
            [cell.sigma for cell in shown],
        )
    ]
    return [_text(row, cell, widths) for row, cell in zip(rows, cells, strict=True)]


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
        text.append(f" {cell.sigma:>{widths[2]}}")
    if cell.verdict is not None:
        text.append(f" {verdicts.MARKS[cell.verdict.kind]}", style=_STYLES[cell.verdict.kind])
    if row.role == "control":
        text.stylize("dim")
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
            "perfect": score.perfect,
            "headroom": anchor.headroom if anchor else None,
            "no_headroom": table.no_headroom(id_),
            **_judged(table.verdicts(row).get(id_)),
            "reason": score.reason,
        }


def _judged(verdict: Verdict | None) -> dict[str, object]:
    if verdict is None:
        return {}
    low, high = verdict.interval or (None, None)
    return {
        "verdict_kind": verdict.kind,
        "difference_low": low,
        "difference_high": high,
        "margin": verdict.margin,
        "p_different": verdict.p_different,
        "p_holm": verdict.p_holm,
        "p_equivalent": verdict.p_equivalent,
        "needs": verdict.needs,
    }
