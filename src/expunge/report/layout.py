"""What stands where: the columns of a table in groups, the cells, and the notes under it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from expunge.evaluation.score import Score
from expunge.evaluation.table import HEADROOM, Anchor, Row, Table
from expunge.report import wording

Verdict = Literal["", "within noise", "no headroom", "above", "below"]

_COST = {"seconds": "time", "ratio": "time ÷ retraining", "MiB": "peak memory"}


@dataclass(frozen=True)
class Cell:
    """One value as it is printed; ``reason`` instead of a value where there is none."""

    value: str = ""
    interval: str = ""
    sigma: str = ""
    units: float | None = None
    verdict: Verdict = ""
    reason: str | None = None
    n: int = 0


@dataclass(frozen=True)
class Column:
    """One metric of a table, with the digits that its values need."""

    score: Score
    digits: int
    anchor: Anchor | None

    @property
    def id(self) -> str:
        return self.score.id

    @property
    def unit(self) -> str:
        return self.score.unit

    @property
    def symbol(self) -> str:
        return wording.SYMBOLS.get(self.unit, self.unit)

    @property
    def is_cost(self) -> bool:
        return self.score.name == "cost"

    @property
    def label(self) -> str:
        """What it measures and on what, without the variant."""
        if self.is_cost and self.unit in _COST:
            return _COST[self.unit]
        return f"{self.score.part} {self.score.name}".strip().replace("_", " ")

    @property
    def variant(self) -> str:
        return "" if self.is_cost and self.unit in _COST else self.score.variant.replace("_", " ")

    @property
    def heading(self) -> str:
        return f"{self.label} ({self.variant})" if self.variant else self.label

    @property
    def has_headroom(self) -> bool:
        """False only where doing nothing is known to be within the noise; a cost has no such question."""
        return self.is_cost or self.anchor is None or self.anchor.has_headroom

    def text(self, value: float) -> str:
        return wording.number(value, self.unit, self.digits)

    def quantity(self, value: float) -> str:
        return wording.quantity(value, self.unit, self.digits)


@dataclass(frozen=True)
class Group:
    """Columns that are read together."""

    title: str
    columns: tuple[Column, ...]


def columns(table: Table) -> dict[str, Column]:
    anchors = table.anchors
    found = {}
    for id_, score in table.columns().items():
        values = [row.scores[id_].value for row in table.rows if id_ in row.scores]
        found[id_] = Column(score, wording.decimals(values, score.unit), anchors.get(id_))
    return found


def utility(found: dict[str, Column]) -> Column | None:
    """The first metric of the test examples that is a fraction, or the first of any unit."""
    tested = [column for column in found.values() if column.score.part == "test"]
    return next((column for column in tested if column.unit == "fraction"), tested[0] if tested else None)


def on_forget(found: dict[str, Column]) -> Column | None:
    """The utility metric, on the forget examples."""
    measure = utility(found)
    if measure is None:
        return None
    twins = (c for c in found.values() if (c.score.name, c.score.part) == (measure.score.name, "forget"))
    return next(twins, None)


def average_gap(found: dict[str, Column]) -> Column | None:
    return next((column for column in found.values() if column.label == "average gap"), None)


def groups(table: Table) -> list[Group]:
    """Utility and the average gap first, then the other evidence, then the cost."""
    found = columns(table)
    measure, gap = utility(found), average_gap(found)
    main = [c for c in found.values() if measure and c.score.name == measure.score.name]
    main += [gap] if gap else []
    cost = [c for c in found.values() if c.is_cost]
    rest = [c for c in found.values() if c not in main and c not in cost]
    named = (("Forgetting and utility", main), ("Further evidence", rest), ("Cost", cost))
    return [Group(title, tuple(members)) for title, members in named if members]


def cell(table: Table, row: Row, column: Column) -> Cell | None:
    """The cell of a metric; None where the row does not have the metric at all."""
    score = row.scores.get(column.id)
    if score is None:
        return None
    if score.reason is not None:
        return Cell(reason=score.reason)
    units = None if column.is_cost else table.noise_units(row, column.id)
    return Cell(
        value=("≥ " if score.censored else "") + column.text(score.value),
        interval=wording.interval(score.interval, column.unit, column.digits),
        sigma=wording.sigma(units),
        units=units,
        verdict="" if row.role != "unlearned" else verdict(units, column.has_headroom),
        n=score.n,
    )


def verdict(units: float | None, has_headroom: bool) -> Verdict:
    """In words, where a model stands; a large distance is one whether or not there is headroom."""
    if units is None:
        return ""
    if abs(units) > HEADROOM:
        return "above" if units > 0 else "below"
    return "within noise" if has_headroom else "no headroom"


def no_headroom(table: Table) -> Iterator[tuple[str, str]]:
    """The metrics on which doing nothing cannot be told from retraining, and the sentence that says so."""
    for column in columns(table).values():
        sentence = None if column.is_cost else table.no_headroom(column.id)
        if sentence and column.anchor:
            original, retrained = column.text(column.anchor.original), column.text(column.anchor.retrained)
            yield column.heading, f"{sentence} ({original} against {retrained} {column.symbol})."


def not_computed(table: Table) -> Iterator[tuple[str, str]]:
    """What is missing and why; equal reasons of several models or metrics are said once."""
    metrics: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for column in columns(table).values():
        reasons: dict[str, list[str]] = {}
        for row in table.rows:
            score = row.scores.get(column.id)
            if score is not None and score.reason is not None:
                reasons.setdefault(score.reason, []).append(row.name)
        holders = sum(column.id in row.scores for row in table.rows)
        for reason, names in reasons.items():
            key = (reason, () if len(names) == holders else tuple(names))
            metrics.setdefault(key, []).append(column.heading)
    for (reason, rows), headings in metrics.items():
        yield wording.listing(headings) + (f" of {wording.listing(rows)}" if rows else ""), reason


def failed(table: Table) -> Iterator[tuple[str, str]]:
    for row in table.rows:
        if row.error is not None:
            yield row.name, row.error
