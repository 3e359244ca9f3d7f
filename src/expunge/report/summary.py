"""What the numbers mean, in words, with the doubts they leave.

A method is called nearest to retraining only where doing nothing is far from it, where the method still
does its task, is nearer than doing nothing, and where no other method's interval reaches its own.
Closeness to retraining is evidence about these measurements and is never said to be more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from expunge.evaluation.ranking import Place
from expunge.evaluation.report import Report
from expunge.evaluation.table import Row, Table
from expunge.report import layout, verdicts, wording
from expunge.report.layout import Column
from expunge.report.standing import Standing, standing

Kind = Literal[
    "nearest", "tie", "unclear", "not nearer", "not ranked", "no headroom", "no anchors", "no models"
]

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


def findings(report: Report) -> list[Finding]:
    return [finding(table) for table in report.tables]


def finding(table: Table) -> Finding:
    """The headline of one forget set and the sentences under it."""
    found = standing(table)
    kind, nearest, headline, basis = _judge(found)
    sentences = [_doing_nothing(found), _floor(found), basis]
    if kind in ("nearest", "tie", "unclear") and found.methods:
        best = found.methods[0].row
        sentences += [_evidence(found, best), _utility(found, best)]
    sentences += list(_exclusions(found))
    failures = [name for name, _ in layout.failed(table)]
    if failures:
        sentences.append(f"{wording.listing(failures)} gave no model; the error stands under the table.")
    said = tuple(filter(None, sentences))
    return Finding(table.name, kind, nearest, headline, basis, said, tuple(_gaps(found)))


def _dropped(found: Standing) -> list[Place]:
    """The methods that are left out of the ranking; of controls nothing else is expected."""
    return [place for place in found.excluded if place.row.role == "unlearned"]


def _exclusions(found: Standing) -> Iterator[str]:
    """Who is not ranked and why; equal reasons are said once."""
    reasons: dict[str, list[str]] = {}
    for place in _dropped(found):
        reasons.setdefault(str(place.excluded), []).append(place.row.name)
    for reason, names in reasons.items():
        yield f"{wording.listing(names)} {'is' if len(names) == 1 else 'are'} not ranked: {reason}."


def _judge(found: Standing) -> tuple[Kind, tuple[str, ...], str, str]:
    table, methods, original = found.table, found.methods, found.original
    if not any(row.error is None for row in table.by_role("unlearned")):
        return "no models", (), "No unlearned model to judge", ""
    if not (methods or _dropped(found)) or not table.by_role("retrained"):
        basis = "Without a distance from retraining no method can be called near to it."
        return "no anchors", (), "Nothing to compare with", basis
    if not has_headroom(table):
        basis = (
            "Doing nothing is already within the noise of retraining here, so a method that did nothing "
            "would look as good: this set cannot show forgetting and cannot rank the methods."
        )
        return "no headroom", (), "No headroom: nothing can be concluded", basis
    if not methods:
        basis = "Only a model that still does its task is ranked: one that lost everything lost this set too."
        return "not ranked", (), "No method can be ranked", basis
    best = methods[0]
    if original and best.value >= original.value:
        basis = f"The smallest average gap of a method, {best.row.name}'s, is {found.quantity(best)}."
        return "not nearer", (), "No method came nearer to retraining than doing nothing", basis
    return _nearest(found)


def _nearest(found: Standing) -> tuple[Kind, tuple[str, ...], str, str]:
    """Who is nearest where somebody is nearer than doing nothing."""
    best, leaders = found.methods[0], found.leaders
    names = tuple(item.row.name for item in leaders)
    if found.original and best.tied(found.original):
        basis = (
            f"The smallest average gap is {best.row.name}'s, {found.quantity(best)}, but its interval "
            "overlaps with that of doing nothing."
        )
        return "unclear", (), "No method is clearly nearer to retraining than doing nothing", basis
    if len(leaders) > 1:
        basis = (
            f"Their average gaps are {wording.listing([found.quantity(item) for item in leaders])}; the "
            "intervals overlap, so the order among them may be chance."
        )
        return "tie", names, f"{wording.listing(names)} tie for nearest to retraining", basis
    return "nearest", names, f"{names[0]} came nearest to retraining", _lead(found)


def _lead(found: Standing) -> str:
    best, *others = found.methods
    text = f"{best.row.name}'s average gap is {found.quantity(best)}"
    if not others:
        return f"{text}; it is the only method measured on this set."
    return f"{text}; the next is {others[0].row.name} with {found.quantity(others[0])}."


def _doing_nothing(found: Standing) -> str:
    """What the model looks like that was left as it was."""
    parts = []
    column = layout.on_forget(found.columns)
    if column and column.anchor:
        anchor = column.anchor
        parts.append(
            f"leaves {column.heading} at {column.quantity(anchor.original)}, where retraining gives "
            f"{column.quantity(anchor.retrained)} ({wording.sigma(anchor.headroom).lstrip('+')} apart)"
        )
    if found.original:
        parts.append(f"has an average gap of {found.quantity(found.original)}")
    return f"Doing nothing {', and '.join(parts)}." if parts else ""


def _gaps(found: Standing) -> Iterator[Gap]:
    column = layout.average_gap(found.columns)
    if column is not None and column.anchor is not None:
        floor = column.anchor.retrained
        yield Gap("another retraining", floor, column.quantity(floor))
    for item in [*found.methods[:2], *([found.original] if found.original else [])]:
        name = "doing nothing" if item is found.original else item.row.name
        digits = column.digits if column else 2
        yield Gap(name, item.value, wording.quantity(item.value, "fraction", digits))


def _floor(found: Standing) -> str:
    gap = layout.average_gap(found.columns)
    if gap is None or gap.anchor is None:
        return ""
    floor = gap.quantity(gap.anchor.retrained)
    return f"Retrained models, each compared with the others, have an average gap of {floor}."


def _evidence(found: Standing, row: Row) -> str:
    """The verdicts on a method counted, and how many of the metrics that can tell are for it."""
    counted = verdicts.tally(found.table, row)
    if counted is None:
        return ""
    given = found.table.verdicts(row)
    telling = [c.id for c in _on_forget(found.columns) if c.has_headroom and c.id in given]
    near = sum(given[id_].kind == "equivalent" for id_ in telling)
    of = "the one forget-set metric" if len(telling) == 1 else f"the {len(telling)} forget-set metrics"
    text = f"{row.name} is {counted.words}"
    return f"{text}; of {of} with headroom it is equivalent on {near}." if telling else f"{text}."


def _utility(found: Standing, row: Row) -> str:
    column = layout.utility(found.columns)
    if column is None or column.anchor is None:
        return ""
    verdict = found.table.verdicts(row).get(column.id)
    units = found.table.noise_units(row, column.id)
    if verdict is None:
        return ""
    sentence = f"Its {column.heading} is {column.difference(verdict.difference)} from retraining"
    return f"{sentence} ({wording.sigma(units)}): {verdict.words}."


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
    every = "both forget sets" if len(found) == 2 else f"all {sets}"
    where = every if len(ranked) == len(found) else f"{len(ranked)} of the {sets}"
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
            "With a single retrained model the noise between two honest retrains is unknown, so every "
            "verdict is inconclusive. The sampling error stands in for the noise, which makes distances "
            "look larger than they are. At least 3 retrained models are needed."
        )
    if fewest == 2:
        return (
            "Retraining was done only twice for a set: the noise between honest retrains rests on a single "
            "difference, so most verdicts are inconclusive. At least 3 retrained models are needed, and more "
            "decide more."
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
