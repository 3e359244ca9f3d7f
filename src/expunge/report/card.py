"""The model card: what was forgotten, what the measurements say, and what they cannot say, in Markdown.

The wording is fixed where honesty depends on it: a metric never raises a method's class of guarantee,
and a difference that was not found is only that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from expunge import config
from expunge.errors import ConfigError
from expunge.evaluation.report import Report
from expunge.evaluation.table import Row, Table
from expunge.evaluation.verdict import ALPHA, MARGIN
from expunge.report import guide, layout, standing, summary, verdicts, wording
from expunge.report.files import write_whole
from expunge.report.layout import Column

GUARANTEES = {
    "exact": "**exact**: the weights are those of a training that never saw the forgotten examples.",
    "certified": "**certified**: a bound on the difference from retraining is part of the method; it holds "
    "under the method's assumptions.",
    "empirical": "**none (approximate)**: the method promises nothing; all that speaks for it are the "
    "measurements below.",
}
UNKNOWN = "**none (unknown method)**: how the model was made is not known here."

LIMITS = (
    "A verdict speaks of these examples, these models and these measurements. *Equivalent* means that no "
    "difference from retraining was found beyond the stated margin at 95 %. It does not mean that nothing is "
    "left.",
    "An attack that was not tried may find what these did not. That an attack failed says nothing of "
    "stronger ones.",
    "The measurements do not change a method's class of guarantee: an approximate method stays approximate "
    "whatever its scores.",
    "Only the model was examined. Copies of the data, earlier checkpoints, logs, caches and models derived "
    "from the original are outside of this card.",
    "Averages can hide single examples; the report's tables by class and by example show the worst of them.",
    "A request for erasure is a legal matter. This card is evidence for it, not its fulfilment.",
)


def write(report: Report, path: Path) -> Path:
    """Writes the card whole or not at all and returns its path.

    Raises:
        RunError: the file cannot be written there.
    """
    return write_whole(path, to_markdown(report))


def to_markdown(report: Report) -> str:
    """The card; equal reports give equal text."""
    parts = [f"# Unlearning card: {_plain(report.name)}", *summary.overview(report)]
    for table in report.tables:
        parts += _set(table)
    parts += ["## Limits and residual risk", _bullets(LIMITS), f"{summary.CAVEAT}"]
    parts += ["## Provenance", _provenance(report), "## How to reproduce", *_reproduce(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _set(table: Table) -> Iterator[str]:
    finding = summary.finding(table)
    yield f"## Forget set: {_plain(table.name)}"
    share = f" of {table.train_size:,} ({table.size / table.train_size:.1%})" if table.train_size else ""
    facts = [f"**Forgotten**: {wording.counted(table.size, 'example')}{share}. {_plain(table.description)}"]
    if table.fingerprint:
        facts.append(f"**Fingerprint**: `{table.fingerprint}`")
    yield _bullets(facts)
    yield f"**Finding**: {_plain(finding.headline)}. {_plain(' '.join(finding.sentences))}"
    yield "### Methods and what they promise"
    yield _bullets(_promises(table)) or "There is no unlearned model."
    yield from _headroom(table)
    yield from _ranking(table)
    yield from _verdicts(table)
    yield "### Attacks tried"
    yield _bullets(_attacks(table)) or "None. Without an attack nothing is known of what an attacker finds."


def _promises(table: Table) -> Iterator[str]:
    """The class of guarantee of every method, methods of one class together, and those without a model."""
    classes: dict[str, list[str]] = {}
    for row in table.by_role("unlearned"):
        kind = str((row.method or {}).get("kind", ""))
        named = f"{_plain(row.name)} (`{kind}`)" if kind and kind != row.name else _plain(row.name)
        classes.setdefault(_guarantee(row.method or {}), []).append(named)
    for sentence, names in classes.items():
        yield f"{wording.listing(names)}: {sentence}"
    for name, error in layout.failed(table):
        yield f"{_plain(name)} gave no model: {_plain(error)}"


def _guarantee(settings: Mapping[str, Any]) -> str:
    """What a method says of itself; a method that is not known here promises nothing."""
    from expunge.methods.base import methods

    stated = ""
    try:
        stated = GUARANTEES[methods.get(str(settings.get("kind", ""))).guarantee]
        promise = config.build(methods, dict(settings)).promise()
    except ConfigError:  # nothing by this name, or with settings of another version
        return stated or UNKNOWN
    return f"{stated} {promise}".strip()


def _headroom(table: Table) -> Iterator[str]:
    """On which metrics nothing could be shown."""
    columns = layout.columns(table)
    judged = [column for id_, column in columns.items() if id_ in table.anchors and not column.is_cost]
    if not judged:
        return
    lacking = [column.heading for column in judged if not column.has_headroom]
    yield "### Headroom"
    if not lacking:
        yield f"Doing nothing can be told from retraining on all {wording.counted(len(judged), 'metric')}."
        return
    yield (
        f"Doing nothing is within the noise of retraining on {len(lacking)} of "
        f"{wording.counted(len(judged), 'metric')}: {_plain(wording.listing(lacking))}. There, being "
        "equivalent shows no forgetting."
    )


def _ranking(table: Table) -> Iterator[str]:
    found = standing.standing(table)
    if not found.places:
        return
    lines = []
    for place in found.places:
        counted = verdicts.tally(table, place.row)
        control = " (control)" if place.row.role == "control" else ""
        said = counted.words if counted else "no verdicts"
        if place.excluded and not control:
            said += f"; not ranked: {place.excluded}"
        gap = f"{found.value(place)} {found.interval(place)}".strip()
        lines.append((found.rank(place) or "–", place.row.name + control, gap, said))
    yield "### Ranking"
    yield _grid(("rank", "model", "average gap in % [95 % interval]", "against retraining"), lines)
    yield "Equal ranks (=) are ties: chance could put them in another order."


def _verdicts(table: Table) -> Iterator[str]:
    """One table for all methods, a line for each metric that has a verdict."""
    rows = [row for row in layout.rows(table) if row.role in ("original", "unlearned") and row.scores]
    columns = [column for id_, column in layout.columns(table).items() if id_ in table.anchors]
    lines = [_verdict_line(table, rows, column) for column in columns]
    if not rows or not lines:
        return
    yield "### Verdicts"
    yield _bullets(_said(table, row) for row in rows if row.role == "unlearned" and table.verdicts(row))
    heading = ["metric", "retrained ± noise", "margin", *(_called(row) for row in rows)]
    yield _grid(heading, lines)
    yield (
        "In a cell: value, distance from retraining in units of the noise, verdict at "
        f"{100 * (1 - ALPHA):g} %. A margin that was not stated beforehand is {MARGIN:g} × the noise."
    )


def _said(table: Table, row: Row) -> str:
    """In one sentence, on which metrics which verdict fell."""
    columns, named = layout.columns(table), dict.fromkeys(verdicts.MARKS, "")
    for kind in named:
        found = [columns[id_].heading for id_, item in table.verdicts(row).items() if item.kind == kind]
        named[kind] = wording.listing(found) or "no metric"
    return (
        f"**{_plain(row.name)}**: no difference from retraining was found beyond the margin at "
        f"{100 * (1 - ALPHA):g} % on {_plain(named['equivalent'])}; a difference was found on "
        f"{_plain(named['different'])}; undecided on {_plain(named['inconclusive'])}."
    )


def _verdict_line(table: Table, rows: Sequence[Row], column: Column) -> list[str]:
    footings = {line.name: line.texts[0] for line in layout.footings(table, [column])}
    cells = []
    for row in rows:
        cell = layout.cell(table, row, column)
        if cell is None or cell.reason is not None:
            cells.append("not computed")
            continue
        word = verdicts.word(cell.verdict) if cell.verdict else "–"
        needs = f" (needs {cell.verdict.needs})" if cell.verdict and cell.verdict.needs else ""
        cells.append(f"{cell.value}, {cell.sigma}, {word}{needs}")
    title = wording.headed(column.heading, column.unit)
    return [title, footings["retrained ± noise"], footings["margin"], *cells]


def _called(row: Row) -> str:
    return "doing nothing" if row.role == "original" else row.name


def _attacks(table: Table) -> Iterator[str]:
    """The columns that attacks fill, with the idea of each."""
    for column in layout.columns(table).values():
        name = guide.registered(column.score)
        if name is not None and guide.is_attack(column.score):
            yield f"{_plain(column.heading)}: {guide.markdown(guide.entry(name).idea)}"


def _provenance(report: Report) -> str:
    """Versions, seed, hardware, hashes: everything but the configuration."""
    found = {key: value for key, value in report.provenance.items() if key not in _CONFIGURATION}
    return _bullets(f"**{key.replace('_', ' ')}**: {_flat(value)}" for key, value in found.items())


_CONFIGURATION = ("config", "configuration")


def _reproduce(report: Report) -> Iterator[str]:
    configuration = next((report.provenance[k] for k in _CONFIGURATION if k in report.provenance), None)
    if not configuration:
        yield "The configuration is not part of this report; the models were handed over ready-made."
        return
    yield "With the versions above, save this as `experiment.yaml` and run `expunge run experiment.yaml`."
    if not isinstance(configuration, str):
        plain = json.loads(json.dumps(configuration, default=str))
        configuration = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    yield f"````yaml\n{configuration.strip()}\n````"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} `{item}`" for key, item in value.items())
    return f"`{value}`"


def _bullets(lines: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _grid(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows)


def _plain(text: str) -> str:
    """Text that Markdown leaves alone: no marks, no tags, one line."""
    text = " ".join(text.split())
    for mark in "\\`*_|<>#$":
        text = text.replace(mark, f"\\{mark}")
    return text
