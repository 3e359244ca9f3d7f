"""From models to a table: every metric on every model of one forget set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from expunge.data.split import Split
from expunge.errors import ConfigError, ExpungeError, MissingEvidence, did_you_mean
from expunge.evaluation import breakdown, controls
from expunge.evaluation.attacks.loss_threshold import LossThreshold
from expunge.evaluation.attacks.membership import SVC, Threshold
from expunge.evaluation.attacks.relearn import RelearnTime
from expunge.evaluation.evidence import Evidence, Keep
from expunge.evaluation.metric import Metric, registered
from expunge.evaluation.metrics.cka import CKA
from expunge.evaluation.metrics.cost import Cost
from expunge.evaluation.metrics.distance import AverageGap, JensenShannon
from expunge.evaluation.metrics.head_only import HeadOnly
from expunge.evaluation.metrics.over_unlearning import SignedGap
from expunge.evaluation.metrics.utility import Accuracy, Loss
from expunge.evaluation.score import Score
from expunge.evaluation.shadows import Shadows
from expunge.evaluation.subject import Subject
from expunge.evaluation.table import Role, Row
from expunge.tasks.base import Task
from expunge.training.session import Event, Session

DEFAULT: tuple[Metric, ...] = (
    Accuracy(part="forget"),
    Accuracy(part="retain"),
    Accuracy(part="test"),
    SVC(),
    Threshold(),
    JensenShannon(),
    AverageGap(membership=SVC()),
    LossThreshold(part="forget"),
    LossThreshold(part="retain"),
    SignedGap(),
    RelearnTime(),
    HeadOnly(),
    CKA(against="original"),
    Loss(part="forget"),
    Loss(part="retain"),
    Loss(part="test"),
    Cost(measure_of="seconds"),
    Cost(measure_of="ratio"),
    Cost(measure_of="memory"),
)
"""What is measured when nothing else is asked for."""

HISTOGRAM_EDGES = tuple(round(0.25 * i, 2) for i in range(41))
"""Edges of the loss histograms in nats; larger losses are counted in the last bin."""


@dataclass(frozen=True)
class Candidate:
    """A model to judge, and what is known of how it was made.

    ``model`` is None where a method failed; ``error`` then says why. ``siblings`` are further models
    made in the same way with other seeds, for metrics that judge a method and not one model of it.
    """

    name: str
    role: Role
    model: nn.Module | None
    cost: Mapping[str, float] = field(default_factory=dict)
    method: dict[str, Any] | None = None
    error: str | None = None
    siblings: tuple[nn.Module, ...] = ()


def evaluate(
    candidates: Sequence[Candidate],
    split: Split,
    task: Task,
    session: Session,
    metrics: Sequence[Metric] = DEFAULT,
    shadows: Shadows | None = None,
) -> list[Row]:
    """One row for each candidate, in order; every metric on every model.

    One forward pass for each model and part feeds all metrics that need outputs. A retrained model is
    compared with the other retrained ones.

    Raises:
        MissingEvidence: there is no original among the candidates.
    """
    return list(Evaluation(candidates, split, task, session, shadows).rows(metrics))


def check_margins(margins: Mapping[str, float], metrics: Sequence[Metric], evidence: Evidence) -> None:
    """Refuses a margin that belongs to no score that will be measured.

    Raises:
        ConfigError: with the names that there are.
    """
    known = set()
    for metric in metrics:
        name, part, variant = metric.labels(evidence)
        known |= {".".join(word for word in (name, part, variant) if word), name.replace(" ", "_")}
        known |= {registered(metric)} - {""}
    for key in margins:
        if key not in known:
            raise ConfigError(
                f"nothing that is measured is called '{key}'.{did_you_mean(key, known)} "
                f"Name a metric, a score or the id of one: {', '.join(sorted(known))}.",
                "margins",
            )


class Evaluation:
    """The subjects of one forget set, sharing their readings between metrics and rows.

    The candidates are those that others are compared with, and any others; ``row`` also takes candidates
    that come later, and keeps nothing of them.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        split: Split,
        task: Task,
        session: Session,
        shadows: Shadows | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.candidates, self.task, self.session, self.keep = candidates, task, session, keep
        self.parts = split.parts()
        self.shadows = None if shadows is None else shadows.on(self.parts)
        self.subjects = {
            c.name: Subject(c.name, c.model, self.parts, task, session)
            for c in candidates
            if c.model is not None
        }
        self.further: dict[str, tuple[Subject, ...]] = {}
        originals = [c.name for c in candidates if c.role == "original"]
        if not originals:
            raise MissingEvidence("an evaluation needs the original model beside the unlearned ones.")
        self.original = self.subjects[originals[0]]
        self.retrained = [self.subjects[c.name] for c in candidates if c.role == "retrained"]
        times = [c.cost["seconds"] for c in candidates if c.role == "retrained" and "seconds" in c.cost]
        self.retraining = sum(times) / len(times) if times else 0.0

    def rows(self, metrics: Sequence[Metric]) -> list[Row]:
        return [self.row(candidate, metrics) for candidate in self.candidates]

    def row(self, candidate: Candidate, metrics: Sequence[Metric]) -> Row:
        """All metrics of one candidate."""
        row = Row(candidate.name, candidate.role, method=candidate.method, error=candidate.error)
        if candidate.model is None:
            return row
        evidence = self.evidence(candidate)
        scores: dict[str, Score] = {}
        for metric in metrics:
            score = metric(evidence)
            scores[score.id] = score
            self.session.emit(Event("evaluated", candidate.name, values={score.id: score.value}))
        row = replace(
            row,
            scores=scores,
            histograms=self._histograms(evidence.subject),
            classes=breakdown.classes(evidence),
            worst=breakdown.worst(evidence),
            answers=breakdown.answers(evidence),
            gallery=breakdown.gallery(evidence),
        )
        if candidate.role not in ("original", "retrained"):  # no other row compares itself with it
            for subject in (evidence.subject, *evidence.siblings):
                subject.release()
            if all(candidate is not known for known in self.candidates):
                del self.subjects[candidate.name]
                self.further.pop(candidate.name, None)
        return row

    def candidate(self, name: str) -> Candidate:
        """The candidate of that name, or the control of that name, made from the original."""
        for found in self.candidates:
            if found.name == name:
                return found
        return Candidate(name, "control", controls.control(name, self.original, self.session, self._part))

    @property
    def _part(self) -> str:
        return "test" if "test" in self.parts else "retain"

    def floors(self) -> dict[str, float]:
        """Score and loss of always giving one answer; empty where the original's outputs cannot be used."""
        try:
            return controls.floors(self.original, self._part)
        except ExpungeError:
            return {}

    def evidence(self, candidate: Candidate) -> Evidence:
        """What the metrics of one candidate may read."""
        subject = self._subject(candidate)
        cost = dict(candidate.cost)
        if candidate.role == "original":
            cost = {"seconds": 0.0, "memory": 0.0}  # doing nothing
        if self.retraining:
            cost["retraining"] = self.retraining
        return Evidence(
            subject=subject,
            original=self.original,
            retrained=tuple(self.retrained),
            task=self.task,
            parts=self.parts,
            session=self.session.child("evaluate"),
            cost=cost,
            siblings=self._siblings(candidate),
            shadows=self.shadows,
            keep=self.keep,
        )

    def _subject(self, candidate: Candidate) -> Subject:
        if candidate.name not in self.subjects:
            assert candidate.model is not None
            self.subjects[candidate.name] = Subject(
                candidate.name, candidate.model, self.parts, self.task, self.session
            )
        return self.subjects[candidate.name]

    def _siblings(self, candidate: Candidate) -> tuple[Subject, ...]:
        if candidate.role == "retrained":
            return tuple(other for other in self.retrained if other is not self.subjects[candidate.name])
        if candidate.name not in self.further:
            self.further[candidate.name] = tuple(
                Subject(f"{candidate.name}, run {i + 2}", model, self.parts, self.task, self.session)
                for i, model in enumerate(candidate.siblings)
            )
        return self.further[candidate.name]

    def _histograms(self, subject: Subject) -> dict[str, list[int]]:
        edges = torch.tensor(HISTOGRAM_EDGES)
        found: dict[str, list[int]] = {}
        for part in ("forget", "test"):
            if part in self.parts:
                try:
                    losses = subject.read(part).loss.clamp(max=edges[-1].item())
                except ExpungeError:
                    continue  # the scores of this part say why
                counts = torch.histogram(losses.float(), edges).hist
                found[part] = [int(count) for count in counts]
        return found
