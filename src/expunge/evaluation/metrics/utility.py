"""How well a model does its task on each part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.errors import DataError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score

Part = Literal["forget", "retain", "test", "holdout"]


@metrics.register("accuracy")
@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """The task's score on one part: the fraction of examples that are right.

    ``mean_{i∈D_part} s_i`` with ``s_i ∈ [0, 1]``; for a classifier ``s_i = 1[argmax f(x_i) = y_i]``.
    On forget, retain and test these are ``1 − UA``, RA and TA of the literature. Interval:
    Clopper–Pearson where every ``s_i`` is 0 or 1, else a bootstrap (BCa) over examples. As
    close to retraining as possible is best.

    Ideal: the value of the retrained models; on the forget set neither 0 nor the original's.
    Cost: nothing beyond the forward pass.
    """

    part: Part = "forget"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return evidence.task.score_name, self.part, ""

    def measure(self, evidence: Evidence) -> Score:
        values = evidence.subject.read(self.part).score.double()
        return Score(
            name=evidence.task.score_name,
            part=self.part,
            value=float(values.mean()),
            interval=statistics.interval(values.numpy(), evidence.clusters(self.part)),
            n=len(values),
            target="retrained",
            unit="fraction",
            per_example=values,
        )


@metrics.register("loss")
@dataclass(frozen=True, kw_only=True)
class Loss(Metric):
    """The mean loss on one part, in nats where the loss is a likelihood.

    ``mean_{i∈D_part} ℓ_i``. Interval: bootstrap (BCa) over examples. As close to retraining as
    possible is best.

    Ideal: the value of the retrained models.
    Cost: nothing beyond the forward pass.
    """

    part: Part = "forget"
    unit = "nats"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "loss", self.part, ""

    def measure(self, evidence: Evidence) -> Score:
        values = evidence.subject.read(self.part).loss.double()
        if not bool(values.isfinite().all()):
            raise DataError("the model's loss is NaN or infinite on some examples.")
        return Score(
            name="loss",
            part=self.part,
            value=float(values.mean()),
            interval=statistics.mean(values.numpy(), clusters=evidence.clusters(self.part)),
            n=len(values),
            target="retrained",
            unit="nats",
            per_example=values,
        )
