"""One self-contained HTML page: summary, tables with their doubts, charts, provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from expunge.evaluation.report import Report
from expunge.evaluation.table import HEADROOM, Row, Table
from expunge.report import charts, layout, summary, trade_off, wording
from expunge.report.charts import Marks, Panel
from expunge.report.files import write_whole
from expunge.report.layout import Cell, Group
from expunge.report.summary import Finding

_BADGES = {
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


@dataclass(frozen=True)
class Grid:
    group: Group
    lines: list[Line]


@dataclass(frozen=True)
class Section:
    """All that the page says of one forget set."""

    id: str
    table: Table
    finding: Finding
    grids: list[Grid]
    no_headroom: list[tuple[str, str]]
    not_computed: list[tuple[str, str]]
    failed: list[tuple[str, str]]
    trade_off: Markup | None
    distances: Markup | None
    cost: Markup | None
    histograms: list[Panel]
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
    given = charts.marks(report)
    configuration, facts = _provenance(report.provenance)
    return environment.get_template("report.html.j2").render(
        report=report,
        overview=summary.overview(report),
        caveat=summary.CAVEAT,
        noise=f"{HEADROOM:g}",
        sections=[_section(table, f"set-{i + 1}", given) for i, table in enumerate(report.tables)],
        average_gaps=_safe(charts.average_gaps(report, "gaps")),
        methods=list(given),
        configuration=configuration,
        facts=facts,
    )


def _section(table: Table, id_: str, given: Marks) -> Section:
    return Section(
        id=id_,
        table=table,
        finding=summary.finding(table),
        grids=[_grid(table, group) for group in layout.groups(table)],
        no_headroom=list(layout.no_headroom(table)),
        not_computed=list(layout.not_computed(table)),
        failed=list(layout.failed(table)),
        trade_off=_safe(trade_off.trade_off(table, given, f"{id_}-trade")),
        distances=_safe(charts.distances(table, f"{id_}-far")),
        cost=_safe(charts.cost(table, given, f"{id_}-cost")),
        histograms=charts.histograms(table, given, f"{id_}-loss"),
        methods=_yaml({row.name: row.method for row in table.rows if row.method}),
    )


def _grid(table: Table, group: Group) -> Grid:
    lines = []
    for index, row in enumerate(table.rows):
        first = index > 0 and table.rows[index - 1].role != row.role
        lines.append(Line(row, first, [layout.cell(table, row, column) for column in group.columns]))
    return Grid(group, lines)


def _safe(svg: str | None) -> Markup | None:
    """A chart of ours: every text in it was escaped when it was drawn."""
    return None if svg is None else Markup(svg)


def _soft(name: str) -> Markup:
    """A name that may break after an underscore, a dot or a slash, and nowhere else."""
    return Markup(re.sub(r"(?<=[_./])", "<wbr>", str(escape(name))))


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
