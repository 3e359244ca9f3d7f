"""One self-contained HTML page: summary, tables with their doubts, charts, provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from expunge.evaluation.report import Report
from expunge.evaluation.table import HEADROOM, Row, Table
from expunge.evaluation.verdict import MARGIN
from expunge.report import (
    breakdown,
    charts,
    curves,
    guide,
    layout,
    standing,
    summary,
    trade_off,
    verdicts,
    wording,
)
from expunge.report.breakdown import ClassTable, Drawings, ExampleList, Question
from expunge.report.charts import Marks, Panel
from expunge.report.files import write_whole
from expunge.report.layout import Cell, Column, Footing, Group
from expunge.report.summary import Finding

ACROSS = 5
"""Columns of a table side by side."""

_BADGES = {
    "not ranked": "none ranked",
    "nearest": "nearest",
    "tie": "tie",
    "unclear": "not told apart",
    "not nearer": "none nearer",
    "no headroom": "no headroom",
    "no anchors": "no anchors",
    "no models": "no models",
}
_TONES = {"nearest": "good", "tie": "good", "no anchors": "mute", "no models": "mute"}


@dataclass(frozen=True)
class Line:
    """One model in one group of columns."""

    row: Row
    first: bool
    cells: list[Cell | None]
    footings: list[Footing]


@dataclass(frozen=True)
class Grid:
    group: Group
    lines: list[Line]


@dataclass(frozen=True)
class Ranked:
    """One line of the ranking; ``rank`` is empty for a model that is not ranked."""

    row: Row
    rank: str
    value: str
    interval: str
    verdicts: str
    excluded: str | None


@dataclass(frozen=True)
class Section:
    """All that the page says of one forget set."""

    id: str
    table: Table
    finding: Finding
    ranking: list[Ranked]
    grids: list[Grid]
    notes: list[tuple[str, str]]
    no_headroom: list[tuple[str, str]]
    not_computed: list[tuple[str, str]]
    failed: list[tuple[str, str]]
    trade_off: Markup | None
    distances: Markup | None
    cost: Markup | None
    roc: Markup | None
    relearning: Markup | None
    depth: Markup | None
    histograms: list[Panel]
    classes: list[ClassTable]
    examples: list[ExampleList]
    answers: list[Question]
    drawings: list[Drawings]
    methods: str

    @property
    def badge(self) -> str:
        return _BADGES[self.finding.kind]

    @property
    def tone(self) -> str:
        return _TONES.get(self.finding.kind, "warn")


def write(report: Report, path: Path) -> Path:
    """Writes the page whole or not at all and returns its path.

    Raises:
        RunError: the file cannot be written there.
    """
    return write_whole(path, render(report))


def render(report: Report) -> str:
    """The page; equal reports give equal bytes, and nothing is loaded from elsewhere."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("expunge.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["counted"] = wording.counted
    environment.filters["soft"] = _soft
    environment.filters["prose"] = _prose
    environment.globals.update(word=verdicts.word, full=verdicts.full)
    given = charts.marks(report)
    configuration, facts = _provenance(report.provenance)
    return environment.get_template("report.html.j2").render(
        report=report,
        overview=summary.overview(report),
        caveat=summary.CAVEAT,
        noise=f"{HEADROOM:g}",
        margin=f"{MARGIN:g}",
        sections=[_section(table, f"set-{i + 1}", given) for i, table in enumerate(report.tables)],
        average_gaps=_safe(charts.average_gaps(report, "gaps")),
        methods=list(given),
        guide=guide.entries(report, _headings(report)),
        configuration=configuration,
        facts=facts,
    )


def _section(table: Table, id_: str, given: Marks) -> Section:
    return Section(
        id=id_,
        table=table,
        finding=summary.finding(table),
        ranking=_ranking(table),
        grids=[_grid(table, part) for group in layout.groups(table) for part in _parts(group)],
        notes=list(layout.notes(table)),
        no_headroom=list(layout.no_headroom(table)),
        not_computed=list(layout.not_computed(table)),
        failed=list(layout.failed(table)),
        trade_off=_safe(trade_off.trade_off(table, given, f"{id_}-trade")),
        distances=_safe(charts.distances(table, f"{id_}-far")),
        cost=_safe(charts.cost(table, given, f"{id_}-cost")),
        roc=_safe(curves.roc(table, given, f"{id_}-roc")),
        relearning=_safe(curves.relearning(table, given, f"{id_}-relearn")),
        depth=_safe(curves.depth(table, given, f"{id_}-depth")),
        histograms=charts.histograms(table, given, f"{id_}-loss"),
        classes=breakdown.classes(table),
        examples=breakdown.examples(table),
        answers=breakdown.answers(table),
        drawings=breakdown.drawings(table),
        methods=_yaml({row.name: row.method for row in table.rows if row.method}),
    )


def _ranking(table: Table) -> list[Ranked]:
    """The ranked models, then those that are not with the reason, then doing nothing."""
    found = standing.standing(table)
    lines = []
    for place in [*found.places, *([found.original] if found.original and found.places else [])]:
        counted = verdicts.tally(table, place.row)
        words = counted.words if counted else ""
        place_of = (found.rank(place), found.value(place), found.interval(place))
        lines.append(Ranked(place.row, *place_of, words, place.excluded))
    return lines


def _parts(group: Group) -> Iterator[Group]:
    """A group as tables that need no scrolling, of like width."""
    count = len(group.columns)
    width = -(-count // -(-count // ACROSS))
    for start in range(0, count, width):
        title = group.title + (" (continued)" if start else "")
        yield Group(title, group.columns[start : start + width])


def _grid(table: Table, group: Group) -> Grid:
    rows = layout.rows(table)
    footings = layout.footings(table, group.columns)
    lines = []
    for index, row in enumerate(rows):
        first = index > 0 and rows[index - 1].role != row.role
        last = index + 1 == len(rows) or rows[index + 1].role != row.role
        footed = footings if last and row.role == "retrained" else []
        lines.append(Line(row, first, [layout.cell(table, row, column) for column in group.columns], footed))
    return Grid(group, lines)


def _headings(report: Report) -> dict[str, str]:
    """What the tables call their columns, by id."""
    found: dict[str, Column] = {}
    for table in report.tables:
        found = {**layout.columns(table), **found}
    return {id_: column.heading for id_, column in found.items()}


def _safe(svg: str | None) -> Markup | None:
    """A chart of ours: every text in it was escaped when it was drawn."""
    return None if svg is None else Markup(svg)


def _soft(name: str) -> Markup:
    """A name that may break after an underscore, a dot or a slash, and nowhere else."""
    return Markup(re.sub(r"(?<=[_./])", "<wbr>", str(escape(name))))


def _prose(text: str) -> Markup:
    """Text of a docstring: escaped, with what stands between double backquotes as code."""
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if code else Markup(escape(piece))
        for code, piece in guide.pieces(text)
    )


def _provenance(provenance: Mapping[str, Any]) -> tuple[str, list[tuple[str, list[tuple[str, str]]]]]:
    """The configuration as YAML, and everything else as named facts."""
    configuration = ""
    facts = []
    for key, value in provenance.items():
        name = key.replace("_", " ")
        if key in ("config", "configuration"):
            configuration = value if isinstance(value, str) else _yaml(value)
        elif isinstance(value, Mapping):
            facts.append((name, [(str(k), _fact(str(k), item)) for k, item in value.items()]))
        else:
            facts.append((name, [("", _fact(key, value))]))
    return configuration, facts


def _fact(key: str, value: object) -> str:
    if key.endswith("seconds") and isinstance(value, int | float):
        return wording.duration(value)
    if isinstance(value, str | int | float):
        return str(value)
    return _yaml(value).strip()


def _yaml(value: object) -> str:
    plain = json.loads(json.dumps(value, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100) if plain else ""
