"""The scores of all models of one forget set, seen from their anchors.

Every table holds the original model (doing nothing) and the retrained models. A value alone says
little; its distance from retraining, in units of the noise between two honest retrains, says more,
and only where doing nothing is far away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from expunge.evaluation import verdict
from expunge.evaluation.score import Score
from expunge.evaluation.verdict import Comparison, Verdict

Role = Literal["original", "retrained", "control", "unlearned"]
"""What a row is; controls are models that must never win."""

HEADROOM = 2.0
"""Doing nothing within this many noise units of retraining leaves nothing to show."""

COSTS = ("seconds", "ratio", "MiB")
"""Units of metrics that are compared as they are: nothing should cost as much as retraining."""

NO_HEADROOM = "no headroom: doing nothing is already within the noise of retraining"


@dataclass(frozen=True)
class Row:
    """One model's scores by id.

    ``error`` says in one line why a method gave no model; the row then has no scores.
    ``histograms`` holds, by part, the counts of per-example losses in the table's bins, ``classes`` the
    task's score by part and class, ``worst`` the forget examples furthest from the retrained models,
    ``answers`` what a language model writes to some forget questions, and ``gallery`` what a generative
    model draws.
    """

    name: str
    role: Role
    scores: dict[str, Score] = field(default_factory=dict)
    method: dict[str, Any] | None = None
    error: str | None = None
    histograms: dict[str, list[int]] = field(default_factory=dict)
    classes: list[dict[str, Any]] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    gallery: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "role": self.role,
            "scores": [score.to_json() for score in self.scores.values()],
            "method": self.method,
            "error": self.error,
            "histograms": self.histograms,
            "classes": self.classes,
            "worst": self.worst,
            "answers": self.answers,
            "gallery": self.gallery,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Row:
        scores = [Score.from_json(item) for item in value["scores"]]
        fields = {key: item for key, item in value.items() if key != "verdicts"}
        return cls(**{**fields, "scores": {score.id: score for score in scores}})


@dataclass(frozen=True)
class Anchor:
    """Where retraining and doing nothing stand on one metric.

    Args:
        retrained: mean over the retrained models.
        noise: the largest of the standard deviation between the retrained models, the sampling
            standard error of one value (a quarter of the width of its 95 % interval) and, for counts
            of steps, one step. The last two keep two retrained models that agree by chance from
            making the noise zero.
        original: the value of doing nothing.
        values: of each retrained model.
        perfect: the mean of what a perfect unlearner scores, where the metric is biased.
        headroom: ``|original − retrained| / noise``.
    """

    id: str
    title: str
    unit: str
    retrained: float
    noise: float
    original: float
    headroom: float
    values: tuple[float, ...] = ()
    perfect: float | None = None

    @property
    def has_headroom(self) -> bool:
        """Whether doing nothing is told apart from retraining at all."""
        return self.headroom > HEADROOM


@dataclass(frozen=True)
class Table:
    """All models of one forget set.

    Args:
        name: what the experiment calls the forget set.
        description: how it was chosen, in words.
        size, train_size: numbers of examples.
        overlap: fraction of the forget set shared with another choice of the same size, by its name.
        bins: edges of the loss histograms, in nats.
        pictures: ``{"id", "label", "png"}`` of some forget examples, PNG in base64.
        margins: what differences are negligible, by a metric's id or name; elsewhere it is
            ``verdict.MARGIN`` times the noise.
        floors: ``accuracy`` (the task's score) and ``loss`` of always giving one answer, on the test
            examples or, without any, on the retained ones.
        names: names of the classes, by label.
    """

    name: str
    description: str
    size: int
    train_size: int
    rows: tuple[Row, ...]
    fingerprint: str = ""
    overlap: dict[str, float] = field(default_factory=dict)
    bins: list[float] = field(default_factory=list)
    pictures: list[dict[str, str]] = field(default_factory=list)
    margins: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def by_role(self, role: Role) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.role == role)

    @cached_property
    def anchors(self) -> dict[str, Anchor]:
        """One anchor for each metric that original and retrained models have a value of."""
        originals, retrained = self.by_role("original"), self.by_role("retrained")
        if not originals or not retrained:
            return {}
        found = {}
        for id_, score in originals[0].scores.items():
            references = [row.scores[id_] for row in retrained if id_ in row.scores]
            if (
                score.unit in COSTS
                or score.reason
                or not references
                or any(item.reason for item in references)
            ):
                continue
            found[id_] = _anchor(score, references)
        return found

    def columns(self) -> Mapping[str, Score]:
        """One score of each metric, in order of appearance, to read titles and units from."""
        return self._columns

    @cached_property
    def _columns(self) -> dict[str, Score]:
        columns: dict[str, Score] = {}
        for row in self.rows:
            for id_, score in row.scores.items():
                columns.setdefault(id_, score)
        return columns

    def gap(self, row: Row, id_: str) -> float | None:
        """``value − mean of the retrained models``, or None where either is missing."""
        anchor, score = self.anchors.get(id_), row.scores.get(id_)
        if anchor is None or score is None or score.reason:
            return None
        return score.value - anchor.retrained

    def noise_units(self, row: Row, id_: str) -> float | None:
        """The gap divided by the retrain-to-retrain noise, signed."""
        gap = self.gap(row, id_)
        if gap is None:
            return None
        noise = self.anchors[id_].noise
        return gap / noise if noise > 0 else (0.0 if gap == 0 else math.copysign(math.inf, gap))

    def no_headroom(self, id_: str) -> str | None:
        """In words, where a small gap would prove nothing; None where there is headroom."""
        anchor = self.anchors.get(id_)
        return NO_HEADROOM if anchor is not None and not anchor.has_headroom else None

    def margin(self, id_: str) -> float:
        """The difference that counts as negligible: the stated one, else ``MARGIN`` × the noise."""
        stated = self._stated(id_)
        return stated if stated is not None else verdict.MARGIN * self.anchors[id_].noise

    def _stated(self, id_: str) -> float | None:
        """By the id of the score, by its name, or by the metric's."""
        score = self.columns()[id_]
        keys = (id_, score.name.replace(" ", "_"), score.metric)
        return next((self.margins[key] for key in keys if key in self.margins), None)

    def verdicts(self, row: Row) -> Mapping[str, Verdict]:
        """Equivalent, different or inconclusive, for each metric of a row that has an anchor.

        A retrained model is an anchor itself and has none.
        """
        if row.role == "retrained":
            return {}
        if row.name not in self._verdicts:
            compared = {}
            for id_, anchor in self.anchors.items():
                score = row.scores.get(id_)
                if score is not None and not score.reason:
                    relative = self._stated(id_) is None
                    compared[id_] = _comparison(score, anchor, self.margin(id_), relative)
            self._verdicts[row.name] = verdict.judge(compared)
        return self._verdicts[row.name]

    @cached_property
    def _verdicts(self) -> dict[str, dict[str, Verdict]]:
        return {}

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "description": self.description,
            "size": self.size,
            "train_size": self.train_size,
            "fingerprint": self.fingerprint,
            "overlap": self.overlap,
            "bins": self.bins,
            "pictures": self.pictures,
            "margins": self.margins,
            "floors": self.floors,
            "names": self.names,
            "rows": [
                {
                    **row.to_json(),
                    "verdicts": {id_: found.to_json() for id_, found in self.verdicts(row).items()},
                }
                for row in self.rows
            ],
            "anchors": [
                {
                    "id": anchor.id,
                    "retrained": anchor.retrained,
                    "noise": anchor.noise,
                    "original": anchor.original,
                    "values": list(anchor.values),
                    "perfect": anchor.perfect,
                    "headroom": anchor.headroom if math.isfinite(anchor.headroom) else None,
                    "verdict": self.no_headroom(anchor.id),
                }
                for anchor in self.anchors.values()
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Table:
        fields = {key: item for key, item in value.items() if key != "anchors"}
        return cls(**{**fields, "rows": tuple(Row.from_json(row) for row in value["rows"])})


def _anchor(original: Score, references: list[Score]) -> Anchor:
    values = [score.value for score in references]
    mean = sum(values) / len(values)
    spread = 0.0
    if len(values) > 1:
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    widths = [score.interval[1] - score.interval[0] for score in references if score.interval]
    sampling = sum(widths) / len(widths) / 4 if widths else 0.0
    noise = max(spread, sampling, 1.0 if original.unit == "steps" else 0.0)
    gap = abs(original.value - mean)
    headroom = gap / noise if noise > 0 else (0.0 if gap == 0 else math.inf)
    biases = [score.perfect for score in references if score.perfect is not None]
    return Anchor(
        id=original.id,
        title=original.title,
        unit=original.unit,
        retrained=mean,
        noise=noise,
        original=original.value,
        headroom=headroom,
        values=tuple(values),
        perfect=sum(biases) / len(biases) if biases else None,
    )


def _comparison(score: Score, anchor: Anchor, margin: float, relative: bool) -> Comparison:
    error, df = score.error, score.df
    if error is None:  # results of before did not keep it
        error, df = score.from_interval
    return Comparison(
        value=score.value,
        retrained=anchor.values,
        error=error or 0.0,
        df=max(df or 1.0, 1.0),
        n=max(score.n, 1),
        margin=margin,
        relative=relative,
    )
