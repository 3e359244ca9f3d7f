"""Who is nearest to retraining, with ties where chance could decide, and nobody who broke the model.

A model that forgot everything has forgotten the forget set too. So only models that still do their
task are ranked: those that keep at least ``UTILITY_KEPT`` of what retraining has above always giving
one answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from expunge.evaluation.score import Score
from expunge.evaluation.table import COSTS, HEADROOM, Row, Table

UTILITY_KEPT = 0.8
"""The fraction of the retrained models' utility above the floor that a ranked model must have."""

DRAWN = "in-domain accuracy"
"""The name of the score that says whether the concepts that stay are drawn."""


@dataclass(frozen=True)
class Place:
    """Where one model stands on one metric.

    Args:
        value: how far it is from the best: the absolute difference from retraining; for metrics with
            a direction of their own the value itself, turned so that less is better.
        low, high: its 95 % interval.
        rank: one more than the number of ranked models whose whole interval is below this one's, and never
            less than that of a model with a smaller value; equal ranks are statistical ties. None for a
            model that is not ranked.
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
    """The id of what tells whether a model still does its task, on test examples or else retained ones.

    The task's score where retraining and always giving one answer are more than two noise units apart
    on it, else the loss where they are. Of what draws pictures, whether the concepts that stay are drawn,
    where a control shows what that is worth by chance.
    """
    for metric in ("accuracy", DRAWN, "loss"):
        for part in ("test", "retain"):
            for id_, score in table.columns().items():
                anchor = table.anchors.get(id_)
                if anchor is None or score.part != part or measures(score) != metric:
                    continue
                room = abs(anchor.retrained - _floor(table, id_, metric))
                if HEADROOM * anchor.noise < room < math.inf:
                    return id_
    return None


def measures(score: Score) -> str:
    """``accuracy`` for the task's score, ``loss`` for the loss; results of before had no registry names."""
    if score.name == DRAWN:
        return DRAWN  # over several runs too
    if score.metric:
        return score.metric
    return "accuracy" if score.unit == "fraction" and score.name != "membership" else score.name


def broken(table: Table, row: Row) -> str | None:
    """Why a model is not ranked, in words: it no longer does its task. None for one that does.

    ``(u − floor) / (u_retrained − floor) < UTILITY_KEPT``: the floor is the utility of always giving
    one answer, or of the best control in the table if that is better.
    """
    id_ = utility(table)
    if id_ is None:
        return (
            "the table has no utility (accuracy or loss on test, or in-domain accuracy beside a control) by "
            "which a broken model could be told"
        )
    anchor, score = table.anchors[id_], row.scores.get(id_)
    if score is None or score.reason:
        return f"its {anchor.title} could not be computed"
    kind = measures(score)
    floor = _floor(table, id_, kind)
    room = anchor.retrained - floor
    if (room <= 0) == (kind != "loss"):
        return f"on {score.title} retraining is no better than {_bottom(kind)}"
    kept = (score.value - floor) / room
    if kept >= UTILITY_KEPT:
        return None
    return (
        f"it keeps {max(kept, 0.0):.0%} of the {score.title} that retraining has above {_bottom(kind)}; "
        f"{UTILITY_KEPT:.0%} are needed to be ranked"
    )


def _bottom(metric: str) -> str:
    """What the floor of a metric is, in words."""
    return "the best control" if metric == DRAWN else "always giving one answer"


def _floor(table: Table, id_: str, metric: str) -> float:
    """What always giving one answer scores, or the best control."""
    values = [table.floors[metric]] if metric in table.floors else []
    found = [row.scores[id_] for row in table.by_role("control") if id_ in row.scores]
    values += [score.value for score in found if not score.reason]
    if metric == "loss":
        return min(values, default=math.inf)
    return max(values, default=math.inf if metric == DRAWN else 0.0)


def ranking(table: Table, id_: str) -> list[Place]:
    """The unlearned models and the controls on one metric: the ranked ones, best first, then the others."""
    found = [place for row in table.rows if (place := _place(table, row, id_)) is not None]
    return ranked(found)


def ranked(places: Sequence[Place]) -> list[Place]:
    """The places in order of their values, with the rank of each that has one, then those that have none."""
    able = sorted((place for place in places if place.excluded is None), key=lambda place: place.value)
    beaten = (1 + sum(other.high < place.low for other in able) for place in able)
    placed = [replace(place, rank=rank) for place, rank in zip(able, accumulate(beaten, max), strict=True)]
    return placed + [place for place in places if place.excluded is not None]


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
