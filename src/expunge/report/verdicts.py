"""Verdicts as they are written: marks for the terminal, words for people, counts for a whole model."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.evaluation.table import Row, Table
from expunge.evaluation.verdict import Kind, Verdict
from expunge.report import wording
from expunge.report.layout import Column

MARKS: dict[Kind, str] = {"equivalent": "=", "different": "≠", "inconclusive": "?"}
"""One character for each verdict, where there is no room for words."""


@dataclass(frozen=True)
class Tally:
    """How many metrics say what of one model.

    Args:
        idle: how many of the equivalent ones are without headroom: doing nothing would be as well.
    """

    equivalent: int
    different: int
    undecided: int
    idle: int

    @property
    def total(self) -> int:
        return self.equivalent + self.different + self.undecided

    @property
    def words(self) -> str:
        """``equivalent on 7 of 9 metrics, different on 1, undecided on 1``."""
        idle = f" ({self.idle} of them without headroom)" if self.idle else ""
        text = f"equivalent on {self.equivalent} of {wording.counted(self.total, 'metric')}{idle}"
        return f"{text}, different on {self.different}, undecided on {self.undecided}"


def tally(table: Table, row: Row) -> Tally | None:
    """The verdicts of a model counted; None for one without any."""
    found = table.verdicts(row)
    if not found:
        return None
    kinds = [verdict.kind for verdict in found.values()]
    idle = sum(item.kind == "equivalent" and bool(table.no_headroom(id_)) for id_, item in found.items())
    return Tally(kinds.count("equivalent"), kinds.count("different"), kinds.count("inconclusive"), idle)


def word(verdict: Verdict) -> str:
    """``different (above)``: on which side of retraining, where the model is not like it."""
    if verdict.kind != "different":
        return verdict.kind
    return f"different ({'above' if verdict.difference > 0 else 'below'})"


def full(verdict: Verdict, column: Column) -> str:
    """A verdict with all that it rests on, in one sentence."""
    text = f"{verdict.words}: {column.difference(verdict.difference)} from retraining"
    if verdict.interval:
        low, high = (wording.number(v, column.unit, column.digits, sign=True) for v in verdict.interval)
        text += f" [{low}, {high}]"
    text += f", margin ±{column.text(verdict.margin)}"
    if verdict.p_different is None or verdict.p_holm is None or verdict.p_equivalent is None:
        return text
    raw, holm, outside = map(probability, (verdict.p_different, verdict.p_holm, verdict.p_equivalent))
    return f"{text}; p of a difference {raw}, after Holm {holm}; p of equivalence {outside}"


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
