"""Who stands where on the average gap: the places of all models of one forget set, and doing nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from expunge.evaluation.ranking import Place, broken, ranked, ranking
from expunge.evaluation.table import Row, Table
from expunge.report import layout, wording
from expunge.report.layout import Column


@dataclass(frozen=True)
class Standing:
    """All that a finding is made from.

    Args:
        original: the place of doing nothing.
        places: of the methods and controls, the ranked ones first, the nearest of them first. Controls are
            never ranked: they are what the utility of a ranked model is measured from.
    """

    table: Table
    columns: dict[str, Column]
    original: Place | None
    places: list[Place]

    @property
    def methods(self) -> list[Place]:
        """The ranked methods, the nearest first."""
        return [place for place in self.places if place.rank and place.row.role == "unlearned"]

    @property
    def leaders(self) -> list[Place]:
        return [place for place in self.methods if place.rank == 1]

    @property
    def excluded(self) -> list[Place]:
        return [place for place in self.places if place.excluded is not None]

    def rank(self, place: Place) -> str:
        """``1=`` where another has the same rank; empty for a model that is not ranked."""
        if place.rank is None:
            return ""
        shared = sum(other.rank == place.rank for other in self.places) > 1
        return f"{place.rank}{'=' if shared else ''}"

    def value(self, place: Place) -> str:
        return wording.number(place.value, "fraction", self._digits)

    def interval(self, place: Place) -> str:
        if place.high <= place.low:
            return ""
        return wording.interval((place.low, place.high), "fraction", self._digits)

    def quantity(self, place: Place) -> str:
        return f"{self.value(place)} {self.interval(place)}".rstrip() + " %"

    @property
    def _digits(self) -> int:
        gap = layout.average_gap(self.columns)
        return gap.digits if gap else 2


def standing(table: Table) -> Standing:
    """The places on the average gap, or on a mean of the gaps where the report has no such metric."""
    columns = layout.columns(table)
    gap = layout.average_gap(columns)
    originals = [place for row in table.by_role("original") if (place := _distance(table, row, columns))]
    if gap is not None:
        places = ranking(table, gap.id)
    else:
        judged = [row for row in table.rows if row.role in ("unlearned", "control")]
        found = [place for row in judged if (place := _distance(table, row, columns))]
        places = ranked([replace(place, excluded=broken(table, place.row)) for place in found])
    return Standing(table, columns, originals[0] if originals else None, places)


def _distance(table: Table, row: Row, columns: dict[str, Column]) -> Place | None:
    """The average gap with its interval, or a mean of gaps where the report has no such metric."""
    column = layout.average_gap(columns)
    if column is not None:
        score = row.scores.get(column.id)
        if score is None or score.reason is not None:
            return None
        margin = column.anchor.noise if column.anchor else 0.0
        low, high = score.interval or (score.value - margin, score.value + margin)
        return Place(row, score.value, low, high)
    compared = [c for c in columns.values() if c.unit == "fraction" and c.score.target == "retrained"]
    anchors = [column.anchor for column in compared if column.anchor]
    gaps = [gap for anchor in anchors if (gap := table.gap(row, anchor.id)) is not None]
    if not gaps or len(gaps) < len(anchors):
        return None
    value = sum(map(abs, gaps)) / len(gaps)
    margin = sum(anchor.noise for anchor in anchors) / len(anchors)
    return Place(row, value, max(0.0, value - margin), value + margin)
