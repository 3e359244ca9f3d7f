"""Does the model answer like one that was never trained?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.errors import DataError
from expunge.evaluation import controls, statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.distance import needs_classes
from expunge.evaluation.score import Score
from expunge.evaluation.subject import Subject


@metrics.register("zrf")
@dataclass(frozen=True, kw_only=True)
class ZRF(Metric):
    """Zero retrain forgetting: one less the divergence from a model that was never trained.

    ``1 − mean_i JS(p_θ(·|x_i), p_0(·|x_i))`` with ``p_0`` a freshly initialised model (the "incompetent
    teacher", by the session's recipe where there is one) and the Jensen–Shannon divergence in nats; in
    ``[1 − ln 2, 1]``, 1 for a model that answers like the untrained one. Interval: bootstrap over
    examples.

    Ideal: the retrained models' value, and not 1: a retrained model generalises to the forget examples and
        does not answer at random. A model that scores 1 has been damaged.
    Cost: one forward pass of the fresh model over the part for each row; no retrained model is needed.
    Differs: in the authors' code the divergence is divided by the number of classes and its arguments are
        exchanged, ``(½ KL(m‖p) + ½ KL(m‖q)) / C``: with many classes every model scores about 1, and a
        probability of 0 gives −∞. ``definition: conformance`` reproduces this (classification only, in
        single precision); it cannot be compared between data sets.
    References: Chundawat et al., Bad Teaching, AAAI 2023, arXiv:2205.08096; code
        selective-synaptic-dampening.
    """

    part: Literal["forget", "retain", "test"] = "forget"
    definition: Literal["corrected", "conformance"] = "corrected"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "ZRF", self.part, "js-conformance" if self.definition == "conformance" else "js"

    def measure(self, evidence: Evidence) -> Score:
        mine = evidence.subject.read(self.part).outputs
        fresh = controls.control("never_trained", evidence.original, evidence.session)
        subject = Subject("never trained", fresh, evidence.parts, evidence.task, evidence.session)
        theirs = subject.read(self.part).outputs
        if self.definition == "conformance":
            needs_classes("the published ZRF", evidence)
            divergence = published(mine, theirs)
        else:
            divergence = evidence.task.jensen_shannon(mine, theirs, evidence.batch(self.part))
        values = 1 - divergence.double()
        bad = ~values.isfinite()
        if bad.any():
            raise DataError(
                f"the published ZRF is infinite or NaN: {int(bad.sum())} of {len(bad)} {self.part} examples "
                "have a class of probability 0. Use definition: corrected."
            )
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.mean(values.numpy(), clusters=evidence.clusters(self.part)),
            n=len(values),
            target="retrained",
            unit="fraction",
            per_example=values,
        )


def published(first: Tensor, second: Tensor) -> Tensor:
    """``(½ KL(m‖p) + ½ KL(m‖q)) / C`` of two sets of logits ``(N, C)``, in float32. Shape ``(N,)``.

    ``inf`` where a probability is 0 and the other is not.
    """
    p, q = torch.softmax(first.float(), -1), torch.softmax(second.float(), -1)
    middle = (p + q) / 2
    terms = torch.xlogy(middle, middle) - middle * (p.log() + q.log()) / 2
    return terms.mean(-1)
