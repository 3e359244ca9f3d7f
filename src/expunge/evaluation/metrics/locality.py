"""What unlearning does to the neighbourhood of a subject, from the subject itself outwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from expunge.data.arrays import Data
from expunge.data.text import TextData
from expunge.errors import ConfigError
from expunge.evaluation import language, statistics, text, tofu
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.generation import Decoding
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score, Unit
from expunge.evaluation.statistics import Floats
from expunge.evaluation.subject import Subject

SHOWN = 20
"""Subjects that are listed, the worst first."""


@metrics.register("locality")
@dataclass(frozen=True, kw_only=True)
class Locality(Metric):
    """What unlearning has done to things near a forgotten subject, beside things further away.

    The mean change since the original, ``mean_i (x_i − x_i^original)``, of the questions of the *nearest*
    neighbours, ``parts[1]``: below 0 where they suffer. ``x`` is the ROUGE-L recall of the answer written, or
    the length-normalised probability of the true one. ``details["curve"]`` is the change over the distance,
    from the subjects themselves (0) outwards, ``details["parts"]`` the same with intervals, and
    ``details["subjects"]`` the change at the nearest neighbours for each subject, the worst first: a mean
    over two hundred people hides those whose neighbourhood is gone. Interval: over examples, or over data
    subjects.

    Args:
        parts: questions about the forgotten subjects and then their surroundings, ordered by distance; those
            of RWKU by default.
        read: ``rouge`` or ``probability``.
        decoding: how answers are written.

    Ideal: the retrained model's value, 0 where there is none.
    Cost: writing an answer to every question, or a forward pass, for each part, of both models.
    Differs: RWKU prints one mean for each part and no change; its ROUGE splits words at spaces alone.
    References: Jin et al., RWKU, 2024, arXiv:2406.10890.
    """

    parts: tuple[str, ...] = ("forget_level2", "neighbor_level2")
    read: Literal["rouge", "probability"] = "rouge"
    decoding: Decoding = Decoding(max_tokens=30)
    unit = "index"

    def __post_init__(self) -> None:
        if len(self.parts) < 2 or len(set(self.parts)) < len(self.parts):
            raise ConfigError("name two or more parts, each once, ordered by distance.", "parts")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = ["probability"] if self.read == "probability" else language.decoded(self.decoding)
        return "locality", self.parts[1], "-".join(words)

    def counts(self) -> Unit:
        return "index"

    def measure(self, evidence: Evidence) -> Score:
        for part in self.parts:
            language.questions(evidence, part)
        changes = [self._change(evidence, part) for part in self.parts]
        shown = [self._shown(evidence, *pair) for pair in zip(self.parts, changes, strict=True)]
        details: dict[str, Any] = {
            "curve": [[distance, row["value"]] for distance, row in enumerate(shown)],
            "x_label": "distance from the forgotten subjects",
            "y_label": "change since the original",
            "parts": shown,
            "subjects": _worst(evidence, self.parts[1], changes[1]),
        }
        return language.averaged(self, evidence, changes[1], details)

    def _change(self, evidence: Evidence, part: str) -> Floats:
        found = [self._values(evidence, subject, part) for subject in (evidence.subject, evidence.original)]
        return found[0] - found[1]

    def _values(self, evidence: Evidence, subject: Subject, part: str) -> Floats:
        if self.read == "probability":
            return tofu.probability(language.likelihood(subject, part))
        records = language.records(language.text(evidence, part))
        written = subject.answers(part, self.decoding)
        said = [answer for samples in written for answer in samples]
        repeated = [records[i].answer for i, samples in enumerate(written) for _ in samples]
        return language.over_samples(written, text.rouge(said, repeated, stemmer=False).recall)

    def _shown(self, evidence: Evidence, part: str, change: Floats) -> dict[str, Any]:
        found = statistics.mean(change, clusters=evidence.clusters(part))
        return {
            "part": part,
            "value": float(change.mean()),
            "interval": None if found is None else list(found),
            "n": len(change),
        }


def _worst(evidence: Evidence, part: str, change: Floats) -> list[dict[str, Any]]:
    clusters, data = evidence.clusters(part), evidence.parts[part]
    if clusters is None:
        return []
    names, numbers = _names(data), clusters.numpy()
    rows = [
        {
            "subject": names[number],
            "value": float(change[numbers == number].mean()),
            "questions": int((numbers == number).sum()),
        }
        for number in np.unique(numbers).tolist()
    ]
    return sorted(rows, key=lambda row: (row["value"], row["subject"]))[:SHOWN]


def _names(data: Data) -> Sequence[str]:
    assert isinstance(data, TextData)
    return data.subjects
