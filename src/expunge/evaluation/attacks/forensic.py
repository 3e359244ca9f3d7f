"""Can an observer tell that a model was unlearned and not retrained?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.errors import DataError, MissingEvidence
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.evaluation.subject import Subject
from expunge.tasks.classification import Classification

Floats = NDArray[np.float64]


@metrics.register("forensic")
@dataclass(frozen=True, kw_only=True)
class Forensic(Metric):
    """How well a detector tells the model's answers from those of retrained models.

    A logistic regression on what a model says of one example: loss, logit-scaled confidence and score,
    of classifiers also the entropy and the largest probability, and the squares of all of them. It
    is fitted on half of the examples, the model's answers against those of all retrained models but one,
    and judged on the other half, the model's against the one left out: ``P(judged more like the model:
    its answers > the left-out one's) + ½ P(equal)``. The value is the mean of this AUC over the retrained
    models left out and both halves. With subjects the halves are of whole subjects. Interval: the mean
    of DeLong's, which is wider than needed since averages vary less.

    Above the retrained models' value the deletion shows, be it that something is remembered or that
    forgetting went too far.

    Ideal: the value of the retrained models, each against the others; nominally 0.5, but somewhat above it
        since a single model differs from others in the same way on many examples.

    Args:
        part: the examples whose answers the observer sees.
        seed: of the halves.

    Cost: nothing beyond the forward passes, and two small fits for each retrained model.
    References: Unlearning isn't invisible, arXiv:2506.14003 (detecting traces of unlearning from outputs);
        this detector is our own.
    """

    part: Literal["forget", "retain", "test"] = "forget"
    seed: int = 0

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "forensic", self.part, "auc"

    def measure(self, evidence: Evidence) -> Score:
        others = evidence.references()
        if len(others) < 2:
            raise MissingEvidence(
                "the forensic detector learns from one retrained model and is judged on another; there is "
                "only one (other) retrained model. Give more of them."
            )
        mine = self._answers(evidence.subject)
        theirs = [self._answers(other) for other in others]
        halves = self._halves(evidence, len(mine))
        values, ends = [], []
        for left_out, judged in enumerate(theirs):
            known = [answers for i, answers in enumerate(theirs) if i != left_out]
            for fit, held in (halves, halves[::-1]):
                detector = Detector(mine[fit], np.concatenate([answers[fit] for answers in known]))
                value, interval = statistics.auc(detector(mine[held]), detector(judged[held]))
                values.append(value)
                ends.append(interval or (0.0, 1.0))
        low, high = np.mean(ends, axis=0)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(np.mean(values)),
            interval=(float(low), float(high)),
            n=len(mine),
            target="retrained",
            unit="fraction",
        )

    def _answers(self, subject: Subject) -> Floats:
        reading = subject.read(self.part)
        columns = [reading.loss, reading.margin, reading.score]
        if isinstance(subject.task, Classification):
            logs = reading.outputs.double().log_softmax(-1)
            columns += [-(logs.exp() * logs).sum(-1), logs.amax(-1).exp()]
        return np.asarray(torch.stack([column.double() for column in columns], 1).numpy())

    def _halves(self, evidence: Evidence, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        clusters = evidence.clusters(self.part)
        groups = np.arange(n) if clusters is None else clusters.numpy()
        who = np.random.default_rng(self.seed).permutation(np.unique(groups))
        if len(who) < 4:
            raise DataError(
                f"the forensic detector needs at least 4 {self.part} examples (or data subjects), half to "
                f"learn from and half to judge; there are {len(who)}."
            )
        first = np.isin(groups, who[::2])
        return np.flatnonzero(first), np.flatnonzero(~first)


class Detector:
    """A logistic regression of standardised features and their squares; both sides weigh the same."""

    def __init__(self, positives: Floats, negatives: Floats) -> None:
        from sklearn.linear_model import LogisticRegression

        rows = np.concatenate([positives, negatives])
        self.mean, self.spread = rows.mean(0), rows.std(0)
        self.spread[self.spread < 1e-12] = 1.0
        sides = np.arange(len(rows)) < len(positives)
        self.machine = LogisticRegression(class_weight="balanced", max_iter=500, random_state=0)
        self.machine.fit(self._columns(rows), sides)

    def __call__(self, rows: Floats) -> Floats:
        return np.asarray(self.machine.decision_function(self._columns(rows)))

    def _columns(self, rows: Floats) -> Floats:
        z = np.clip((rows - self.mean) / self.spread, -10, 10)
        return np.concatenate([z, z**2], 1)
