"""Whether a skill was forgotten or only the examples of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from expunge.errors import ConfigError, MissingEvidence
from expunge.evaluation import language, statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats
from expunge.evaluation.subject import Subject


@metrics.register("skill_generalisation")
@dataclass(frozen=True, kw_only=True)
class SkillGeneralisation(Metric):
    """How much of a skill is gone on items that the method never saw.

    With ``x_i`` the score of an example, the value is the mean loss of it since the original,
    ``g = mean_i (x_i^original − x_i)``, over held-out items of the skill. Beside it, in ``details``, stand
    the same of the items that were forgotten (``held_in``) and of other skills (``other``), their intervals,
    and ``share``, ``g / g_held_in``, where the forgotten items lost anything: 1 where forgetting generalises,
    0 where it is of those items alone. Interval: over examples, or over data subjects.

    Args:
        part: held-out items of the skill: ``test``, or a probe.
        held_in: the items that were forgotten.
        other: items of other skills.
        read: ``score``, the task's own (accuracy; of text the share of right tokens); ``probability``, of
            the true answer (of text length-normalised); ``choice``, how often the right answer is likelier
            than the wrong ones whose names begin with ``perturbed_``.

    Ideal: the retrained model's value. Far below it, with ``held_in`` at its own retrained value, the method
        taught silence on its examples.
    Cost: nothing beyond the forward passes of the subject and of the original.
    References: Zhang, Choshen and Andreas, Unforgettable Generalization in Language
        Models, COLM 2024, arXiv:2409.02228.
    """

    part: str = "test"
    held_in: str = "forget"
    other: str = "retain"
    read: Literal["score", "probability", "choice"] = "score"
    unit = "index"

    def __post_init__(self) -> None:
        if len({self.part, self.held_in, self.other}) < 3:
            raise ConfigError("held-out items, forgotten ones and other skills are three parts.", "part")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "skill lost", self.part, self.read

    def measure(self, evidence: Evidence) -> Score:
        for part in (self.part, self.held_in, self.other):
            if part not in evidence.parts:
                raise MissingEvidence(
                    f"there is no '{part}' data; there are {', '.join(evidence.parts)}. Give the split the "
                    "part, or another name."
                )
        lost = self._lost(evidence, self.part)
        rows = {
            name: self._row(evidence, part)
            for name, part in (("held_in", self.held_in), ("other", self.other))
        }
        inside = rows["held_in"]["value"]
        clusters = evidence.clusters(self.part)
        name, part, variant = self.labels(evidence)
        details: dict[str, Any] = {**rows, "share": float(lost.mean()) / inside if inside > 0 else None}
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(lost.mean()),
            interval=statistics.mean(lost, clusters=clusters) if len(lost) > 1 else None,
            n=len(lost),
            target="retrained",
            unit="index",
            details=details,
            per_example=torch.from_numpy(lost),
        )

    def _row(self, evidence: Evidence, part: str) -> dict[str, Any]:
        lost = self._lost(evidence, part)
        found = statistics.mean(lost, clusters=evidence.clusters(part)) if len(lost) > 1 else None
        return {
            "value": float(lost.mean()),
            "interval": None if found is None else list(found),
            "n": len(lost),
        }

    def _lost(self, evidence: Evidence, part: str) -> Floats:
        before, after = (
            self._values(evidence, subject, part) for subject in (evidence.original, evidence.subject)
        )
        return before - after

    def _values(self, evidence: Evidence, subject: Subject, part: str) -> Floats:
        if self.read == "choice":
            right, wrong = language.likelihoods(subject, part, language.text(evidence, part))
            options = np.concatenate([right.mean[:, None], wrong.mean], 1)
            best = options == options.max(1, keepdims=True)
            return np.asarray(best[:, 0] / best.sum(1), np.float64)
        reading = subject.read(part)
        return np.asarray((reading.score if self.read == "score" else reading.confidence).double().numpy())
