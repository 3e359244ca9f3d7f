"""Who is nearest to retraining, with ties where chance could decide, and nobody who broke the model.

A model that forgot everything has forgotten the forget set too. So only models that still do their
task are ranked: those that keep at least ``UTILITY_KEPT`` of what retraining has above always giving
one answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from expunge.evaluation.table import COSTS, Row, Table

UTILITY_KEPT = 0.8
"""The fraction of the retrained models' utility above the floor that a ranked model must have."""


@dataclass(frozen=True)
class Place:
    """Where one model stands on one metric.

    Args:
        value: how far it is from the best: the absolute difference from retraining; for metrics with
            a direction of their own the value itself, turned so that less is better.
        low, high: its 95 % interval.
        rank: one more than the number of ranked models whose whole interval is below this one's; equal
            ranks are statistical ties. None for a model that is not ranked.
        excluded: why it is not ranked.
    """

    row: Row
    value: float
    low: float
    high: float
    rank: int | None = None
    excluded: str | None = None

    def tied(self, other: Place) -> bool:
        """Whether chance could put them in the other order."""
        return self.low <= other.high and other.low <= self.high


def utility(table: Table) -> str | None:
    """The id of the task's score on test examples, else on retained ones."""
    columns = table.columns()
    for part in ("test", "retain"):
        for id_, score in columns.items():
            if score.part == part and score.unit == "fraction" and score.name not in ("membership",):
                return id_
    return None


def broken(table: Table, row: Row) -> str | None:
    """Why a model no longer does its task, in words; None for one that does.

    ``(u − floor) / (u_retrained − floor) < UTILITY_KEPT``: the floor is the utility of always giving
    one answer, or of the best control in the table if that is higher.
    """
    id_ = utility(table)
    anchor = table.anchors.get(id_) if id_ is not None else None
    score = row.scores.get(id_) if id_ is not None else None
    if anchor is None or score is None or id_ is None:
        return None
    if score.reason:
        return f"its {score.title} could not be computed"
    controls = [item.scores[id_].value for item in table.by_role("control") if id_ in item.scores]
    floor = max([table.floor or 0.0, *(value for value in controls if value == value)])
    room = anchor.retrained - floor
    if room <= 0:
        return f"on {score.title} retraining is no better than giving always one answer"
    kept = (score.value - floor) / room
    if kept >= UTILITY_KEPT:
        return None
    return (
        f"it keeps {max(kept, 0.0):.0%} of the {score.title} that retraining has above always giving one "
        f"answer; {UTILITY_KEPT:.0%} are needed to be ranked"
    )


def ranking(table: Table, id_: str) -> list[Place]:
    """The unlearned models and the controls on one metric: the ranked ones, best first, then the others."""
    found = [place for row in table.rows if (place := _place(table, row, id_)) is not None]
    ranked = sorted((place for place in found if place.excluded is None), key=lambda place: place.value)
    placed = [_ranked(place, 1 + sum(other.high < place.low for other in ranked)) for place in ranked]
    return placed + [place for place in found if place.excluded is not None]


def _ranked(place: Place, rank: int) -> Place:
    return Place(place.row, place.value, place.low, place.high, rank)


def _place(table: Table, row: Row, id_: str) -> Place | None:
    """A row's distance from the best, or None for anchors and missing values."""
    score = row.scores.get(id_)
    if row.role not in ("unlearned", "control") or score is None or score.reason:
        return None
    excluded = broken(table, row)
    if score.target != "retrained" or id_ not in table.anchors:
        if score.target == "retrained":
            return None
        low, high = score.interval or (score.value, score.value)
        if score.unit not in COSTS and score.target == "high":
            return Place(row, -score.value, -high, -low, excluded=excluded)
        return Place(row, score.value, low, high, excluded=excluded)
    difference = score.value - table.anchors[id_].retrained
    verdict = table.verdicts(row).get(id_)
    low, high = (verdict.interval if verdict else None) or (difference, difference)
    far, near = max(abs(low), abs(high)), 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return Place(row, abs(difference), near, far, excluded=excluded)
