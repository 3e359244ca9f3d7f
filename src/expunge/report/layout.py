"""What stands where: the columns of a table in groups, the cells, and the notes under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from expunge.evaluation import ranking
from expunge.evaluation.score import Score
from expunge.evaluation.table import Anchor, Role, Row, Table
from expunge.evaluation.verdict import Verdict
from expunge.report import guide, wording

ROLES: tuple[Role, ...] = ("original", "retrained", "unlearned", "control")
"""In what order the models of a table stand."""

_COST = {"seconds": "time", "ratio": "time ÷ retraining", "memory": "peak memory", "storage": "storage"}


@dataclass(frozen=True)
class Cell:
    """One value as it is printed; ``reason`` instead of a value where there is none.

    ``headroom`` is False where doing nothing is within the noise of retraining.
    """

    value: str = ""
    interval: str = ""
    sigma: str = ""
    units: float | None = None
    verdict: Verdict | None = None
    headroom: bool = True
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
        if self.is_cost and self.score.variant in _COST:
            return _COST[self.score.variant]
        return f"{self.score.part} {self.score.name}".strip().replace("_", " ")

    @property
    def variant(self) -> str:
        return "" if self.is_cost and self.score.variant in _COST else self.score.variant.replace("_", " ")

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

    def difference(self, value: float) -> str:
        """A signed difference of two values: ``+1.2 points``, ``−0.013 nats``."""
        text = wording.number(value, self.unit, self.digits, sign=True)
        return f"{text} {'points' if self.unit == 'fraction' else self.symbol}".rstrip()


@dataclass(frozen=True)
class Footing:
    """One line under the retrained models, with a text for each column: what a verdict rests on."""

    name: str
    title: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Columns that are read together."""

    title: str
    columns: tuple[Column, ...]


def rows(table: Table) -> list[Row]:
    """The models by role, controls last."""
    return sorted(table.rows, key=lambda row: ROLES.index(row.role))


def footings(table: Table, shown: Sequence[Column]) -> list[Footing]:
    """The mean of the retrained models with its noise, the headroom, the margin, a perfect unlearner's value.

    Nothing without anchors, and no line that would be empty.
    """
    lines = (
        ("retrained ± noise", "mean of the retrained models, and what two honest retrains differ by", _mean),
        ("headroom", "how far doing nothing is from retraining, in noise units", _headroom),
        ("margin", "smaller differences from retraining count as negligible", partial(_margin, table)),
        ("perfect unlearner", "what an exact unlearner scores at this number of examples", _perfect),
    )
    found = [
        Footing(name, title, tuple(text(column, column.anchor) if column.anchor else "" for column in shown))
        for name, title, text in lines
    ]
    return [footing for footing in found if any(footing.texts)]


def _mean(column: Column, anchor: Anchor) -> str:
    return f"{column.text(anchor.retrained)} ± {column.text(anchor.noise)}"


def _headroom(column: Column, anchor: Anchor) -> str:
    if column.is_cost:
        return ""
    distance = wording.sigma(anchor.headroom).replace("+", "")
    return distance if anchor.has_headroom else f"none ({distance})"


def _margin(table: Table, column: Column, anchor: Anchor) -> str:
    return f"± {column.text(table.margin(anchor.id))}"


def _perfect(column: Column, anchor: Anchor) -> str:
    return "" if anchor.perfect is None else column.text(anchor.perfect)


def columns(table: Table) -> dict[str, Column]:
    anchors = table.anchors
    found = {}
    for id_, score in table.columns().items():
        values = [row.scores[id_].value for row in table.rows if id_ in row.scores]
        found[id_] = Column(score, wording.decimals(values, score.unit), anchors.get(id_))
    return found


def utility(found: dict[str, Column]) -> Column | None:
    """The task's score on the test examples, else the loss on them."""
    tested = [column for column in found.values() if column.score.part == "test"]
    ordered = (c for kind in ("accuracy", "loss") for c in tested if ranking.measures(c.score) == kind)
    return next(ordered, None)


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
    """Utility and the average gap first, then attacks, then the other evidence, then the cost."""
    found = columns(table)
    measure, gap = utility(found), average_gap(found)
    main = [c for c in found.values() if measure and c.score.name == measure.score.name]
    main += [gap] if gap else []
    cost = [c for c in found.values() if c.is_cost]
    attacks = [c for c in found.values() if c not in main and guide.is_attack(c.score)]
    rest = [c for c in found.values() if c not in (*main, *cost, *attacks)]
    named = (
        ("Forgetting and utility", main),
        ("Attacks", attacks),
        ("Further evidence", rest),
        ("Cost", cost),
    )
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
        verdict=table.verdicts(row).get(column.id),
        headroom=column.has_headroom,
        n=score.n,
    )


def no_headroom(table: Table) -> Iterator[tuple[str, str]]:
    """The metrics on which doing nothing cannot be told from retraining, and the sentence that says so."""
    for column in columns(table).values():
        sentence = None if column.is_cost else table.no_headroom(column.id)
        if sentence and column.anchor:
            original, retrained = column.anchor.original, column.anchor.retrained
            compared = f"{column.text(original)} against {column.quantity(retrained)}"
            yield column.heading, f"{sentence} ({compared})."


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


def notes(table: Table) -> Iterator[tuple[str, str]]:
    """What metrics say of their values beside the numbers; equal notes of several models are said once."""
    for column in columns(table).values():
        said: dict[str, list[str]] = {}
        for row in rows(table):
            score = row.scores.get(column.id)
            if score is not None and (note := score.details.get("note")):
                said.setdefault(str(note), []).append(row.name)
        for note, names in said.items():
            everyone = len(names) == sum(column.id in row.scores for row in table.rows)
            yield column.heading + ("" if everyone else f" of {wording.listing(names)}"), note


def failed(table: Table) -> Iterator[tuple[str, str]]:
    for row in table.rows:
        if row.error is not None:
            yield row.name, row.error
