"""What the numbers mean, in words, with the doubts they leave.

A method is called nearest to retraining only where doing nothing is far from it, where the method is
nearer than doing nothing, and where no other method's interval reaches its own. Closeness to
retraining is evidence about these measurements and is never said to be more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from expunge.evaluation.report import Report
from expunge.evaluation.table import HEADROOM, Row, Table
from expunge.report import layout, wording
from expunge.report.layout import Column

Kind = Literal["nearest", "tie", "unclear", "not nearer", "no headroom", "no anchors", "no models"]

CAVEAT = (
    "Being close to retraining on these measurements is evidence, not a guarantee: it speaks of these "
    "examples, these models and these attacks, and another attack may find what they did not."
)


@dataclass(frozen=True)
class Finding:
    """What one forget set says.

    Args:
        nearest: the methods nearest to retraining, the nearest first; several are a tie, none where
            nothing can be said.
        headline: the finding in a few words.
        basis: what decided it.
        sentences: all that is worth knowing about it, the basis among it.
        gaps: average gaps to compare at a glance: retraining's own, the nearest methods, doing nothing.
    """

    table: str
    kind: Kind
    nearest: tuple[str, ...]
    headline: str
    basis: str
    sentences: tuple[str, ...]
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class Gap:
    """An average gap under a name that a reader knows."""

    name: str
    value: float
    text: str


@dataclass(frozen=True)
class Distance:
    """How far one row is from retraining over all compared metrics, as a fraction."""

    row: Row
    value: float
    low: float
    high: float

    def tied(self, other: Distance) -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class _Standing:
    """All that a finding is made from."""

    table: Table
    columns: dict[str, Column]
    original: Distance | None
    methods: list[Distance]

    @property
    def leaders(self) -> list[Distance]:
        return [item for item in self.methods if item.tied(self.methods[0])]

    def quantity(self, distance: Distance) -> str:
        gap = layout.average_gap(self.columns)
        digits = gap.digits if gap else 2
        text = wording.number(distance.value, "fraction", digits)
        if distance.high > distance.low:
            text += f" {wording.interval((distance.low, distance.high), 'fraction', digits)}"
        return f"{text} %"


def findings(report: Report) -> list[Finding]:
    return [finding(table) for table in report.tables]


def finding(table: Table) -> Finding:
    """The headline of one forget set and the sentences under it."""
    columns = layout.columns(table)
    distances = [(row, _distance(table, row, columns)) for row in table.rows]
    originals = [item for row, item in distances if row.role == "original" and item]
    methods = sorted(
        (item for row, item in distances if row.role == "unlearned" and item), key=lambda item: item.value
    )
    standing = _Standing(table, columns, originals[0] if originals else None, methods)
    kind, nearest, headline, basis = _judge(standing)
    sentences = [_doing_nothing(standing), _floor(standing), basis]
    if kind in ("nearest", "tie", "unclear") and methods:
        sentences += [_evidence(standing, methods[0].row), _utility(standing, methods[0].row)]
    failures = [name for name, _ in layout.failed(table)]
    if failures:
        sentences.append(f"{wording.listing(failures)} gave no model; the error stands under the table.")
    said = tuple(filter(None, sentences))
    return Finding(table.name, kind, nearest, headline, basis, said, tuple(_gaps(standing)))


def _judge(standing: _Standing) -> tuple[Kind, tuple[str, ...], str, str]:
    table, methods, original = standing.table, standing.methods, standing.original
    if not any(row.error is None for row in table.by_role("unlearned")):
        return "no models", (), "No unlearned model to judge", ""
    if not methods or not table.by_role("retrained"):
        basis = "Without a distance from retraining no method can be called near to it."
        return "no anchors", (), "Nothing to compare with", basis
    best, leaders = methods[0], standing.leaders
    if not has_headroom(table):
        basis = (
            "Doing nothing is already within the noise of retraining here, so a method that did nothing "
            "would look as good: this set cannot show forgetting and cannot rank the methods."
        )
        return "no headroom", (), "No headroom: nothing can be concluded", basis
    if original and best.value >= original.value:
        basis = f"The smallest average gap of a method, {best.row.name}'s, is {standing.quantity(best)}."
        return "not nearer", (), "No method came nearer to retraining than doing nothing", basis
    names = tuple(item.row.name for item in leaders)
    if original and best.tied(original):
        basis = (
            f"The smallest average gap is {best.row.name}'s, {standing.quantity(best)}, but its interval "
            "overlaps with that of doing nothing."
        )
        return "unclear", (), "No method is clearly nearer to retraining than doing nothing", basis
    if len(leaders) > 1:
        basis = (
            f"Their average gaps are {wording.listing([standing.quantity(item) for item in leaders])}; the "
            "intervals overlap, so the order among them may be chance."
        )
        return "tie", names, f"{wording.listing(names)} tie for nearest to retraining", basis
    return "nearest", names, f"{names[0]} came nearest to retraining", _lead(standing)


def _lead(standing: _Standing) -> str:
    best, *others = standing.methods
    text = f"{best.row.name}'s average gap is {standing.quantity(best)}"
    if not others:
        return f"{text}; it is the only method measured on this set."
    return f"{text}; the next is {others[0].row.name} with {standing.quantity(others[0])}."


def _doing_nothing(standing: _Standing) -> str:
    """What the model looks like that was left as it was."""
    parts = []
    column = layout.on_forget(standing.columns)
    if column and column.anchor:
        anchor = column.anchor
        parts.append(
            f"leaves {column.heading} at {column.quantity(anchor.original)}, where retraining gives "
            f"{column.quantity(anchor.retrained)} ({wording.sigma(anchor.headroom).lstrip('+')} apart)"
        )
    if standing.original:
        parts.append(f"has an average gap of {standing.quantity(standing.original)}")
    return f"Doing nothing {', and '.join(parts)}." if parts else ""


def _gaps(standing: _Standing) -> Iterator[Gap]:
    column = layout.average_gap(standing.columns)
    if column is not None and column.anchor is not None:
        floor = column.anchor.retrained
        yield Gap("another retraining", floor, column.quantity(floor))
    for item in [*standing.methods[:2], *([standing.original] if standing.original else [])]:
        name = "doing nothing" if item is standing.original else item.row.name
        digits = column.digits if column else 2
        yield Gap(name, item.value, wording.quantity(item.value, "fraction", digits))


def _floor(standing: _Standing) -> str:
    gap = layout.average_gap(standing.columns)
    if gap is None or gap.anchor is None:
        return ""
    floor = gap.quantity(gap.anchor.retrained)
    return f"Retrained models, each compared with the others, have an average gap of {floor}."


def _evidence(standing: _Standing, row: Row) -> str:
    """On how many of the metrics that can show something the method is within the noise."""
    telling = [column for column in _on_forget(standing.columns) if column.has_headroom]
    units = [standing.table.noise_units(row, column.id) for column in telling]
    known = [abs(unit) for unit in units if unit is not None]
    if not known:
        return ""
    near = sum(unit <= HEADROOM for unit in known)
    many = f"{near} of the {len(known)} forget-set metrics" if len(known) > 1 else "the one forget-set metric"
    within = "is not within" if len(known) == 1 and not near else "is within"
    return (
        f"{row.name} {within} {HEADROOM:g} noise units of retraining on {many} on which doing nothing can "
        "be told from it."
    )


def _utility(standing: _Standing, row: Row) -> str:
    column = layout.utility(standing.columns)
    if column is None or column.anchor is None:
        return ""
    gap, units = standing.table.gap(row, column.id), standing.table.noise_units(row, column.id)
    if gap is None or units is None:
        return ""
    if abs(units) <= HEADROOM:
        return f"Its {column.heading} is within the noise of retraining."
    points = wording.number(abs(gap), column.unit, column.digits)
    unit = ("point" if points == "1.0" else "points") if column.unit == "fraction" else column.symbol
    side = "above" if gap > 0 else "below"
    return f"Its {column.heading} is {points} {unit} {side} retraining ({wording.sigma(units)})."


def has_headroom(table: Table) -> bool:
    """Whether a small average gap could mean anything: doing nothing must have a large one.

    Where the retrained models have no average gap of their own, the metrics of the forget examples
    decide.
    """
    columns = layout.columns(table)
    gap = layout.average_gap(columns)
    if gap is not None and gap.anchor is not None:
        return gap.has_headroom
    known = [column for column in _on_forget(columns) if column.anchor]
    return not known or any(column.has_headroom for column in known)


def _on_forget(columns: dict[str, Column]) -> list[Column]:
    return [c for c in columns.values() if c.anchor and c.score.part == "forget" and not c.is_cost]


def _distance(table: Table, row: Row, columns: dict[str, Column]) -> Distance | None:
    """The average gap with its interval, or a mean of gaps where the report has no such metric."""
    column = layout.average_gap(columns)
    if column is not None:
        score = row.scores.get(column.id)
        if score is None or score.reason is not None:
            return None
        margin = column.anchor.noise if column.anchor else 0.0
        low, high = score.interval or (score.value - margin, score.value + margin)
        return Distance(row, score.value, low, high)
    compared = [c for c in columns.values() if c.unit == "fraction" and c.score.target == "retrained"]
    anchors = [column.anchor for column in compared if column.anchor]
    gaps = [gap for anchor in anchors if (gap := table.gap(row, anchor.id)) is not None]
    if not gaps or len(gaps) < len(anchors):
        return None
    value = sum(map(abs, gaps)) / len(gaps)
    margin = sum(anchor.noise for anchor in anchors) / len(anchors)
    return Distance(row, value, max(0.0, value - margin), value + margin)


def overview(report: Report) -> list[str]:
    """What holds over all forget sets: who leads, how sure the anchors are, what is missing."""
    found = findings(report)
    return list(filter(None, [_across(found), _anchors(report), _missing(report)]))


def _across(found: list[Finding]) -> str:
    sets = wording.counted(len(found), "forget set")
    ranked = [item for item in found if item.nearest]
    if len(found) < 2:
        return "" if ranked else "No method can be called nearest to retraining."
    if not ranked:
        return f"On none of the {sets} can a method be called nearest to retraining."
    where = f"all {sets}" if len(ranked) == len(found) else f"{len(ranked)} of the {sets}"
    text = f"On {where} a method, or several tied, came nearer to retraining than doing nothing"
    always = [name for name in ranked[0].nearest if all(name in item.nearest for item in ranked)]
    if len(ranked) == 1:
        return f"{text}: {wording.listing(ranked[0].nearest)}."
    if not always:
        return f"{text}; no single method was among the nearest each time."
    were = "was" if len(always) == 1 else "were"
    return f"{text}; {wording.listing(always)} {were} among the nearest each time."


def _anchors(report: Report) -> str:
    counts = {len(table.by_role("retrained")) for table in report.tables}
    if not counts:
        return "The report has no forget set."
    fewest = min(counts)
    if fewest == 0:
        return "At least one forget set has no retrained model to compare with."
    if fewest == 1:
        return (
            "With a single retrained model the noise between two honest retrains is unknown; the sampling "
            "error stands in for it, which makes distances look larger than they are."
        )
    times = f"{'' if len(counts) == 1 else 'at least '}{fewest} times"
    return (
        f"Retraining was done {times} for each set: the noise "
        "is what honest retrains differ by, or the sampling error where that is larger."
    )


def _missing(report: Report) -> str:
    scores = [s for table in report.tables for row in table.rows for s in row.scores.values()]
    absent = sum(score.reason is not None for score in scores)
    failures = sum(1 for table in report.tables for _ in layout.failed(table))
    parts = []
    if absent:
        parts.append(f"{absent} of {wording.counted(len(scores), 'value')} could not be computed")
    if failures:
        parts.append(f"{wording.counted(failures, 'run')} of a method gave no model")
    return f"{' and '.join(parts).capitalize()}; the reasons stand under the tables." if parts else ""
