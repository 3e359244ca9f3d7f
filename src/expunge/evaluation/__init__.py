"""Scores with intervals, seen from their anchors."""

from expunge.evaluation.evaluate import DEFAULT, Candidate, evaluate
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.report import Report
from expunge.evaluation.score import Score
from expunge.evaluation.table import Anchor, Row, Table

__all__ = [
    "DEFAULT",
    "Anchor",
    "Candidate",
    "Metric",
    "Report",
    "Row",
    "Score",
    "Table",
    "evaluate",
    "metrics",
]
