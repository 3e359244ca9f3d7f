"""Forgetting, retaining and generalising as retraining does, in one product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.distance import paired_gaps
from expunge.evaluation.metrics.utility import Accuracy
from expunge.evaluation.score import Score


@metrics.register("tow")
@dataclass(frozen=True, kw_only=True)
class TugOfWar(Metric):
    """Tug of war (ToW): the product of three closenesses to retraining; ToW-MIA with a membership attack.

    ``Π_{forget, retain, test} (1 − |a(θ) − mean_r a(θ_r)|)`` with the accuracy ``a`` as a fraction; in
    ``[0, 1]``. With ``membership`` the attack's value stands in the place of the accuracy on the forget set
    (ToW-MIA). A product hides which factor failed, so ``details["factors"]`` has all three. Interval:
    percentile bootstrap over the examples of each part, paired between the model and the retrained ones, and
    widened to hold the value itself, since sampling alone makes every factor smaller. Higher is better.

    Ideal: the value of the retrained models, each compared with the others; somewhat below 1.
    Cost: three readings of stored outputs, and the attack's fit.
    Differs: the literature compares with one retrained model; here it is the mean of those of the table.
    References: Zhao et al., What Makes Unlearning Hard and What to Do About It, NeurIPS 2024,
        arXiv:2406.01257; code RUM.
    """

    membership: Metric | None = None
    target = "high"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "ToW", "", f"mia-{metrics.name_of(self.membership)}" if self.membership else ""

    def measure(self, evidence: Evidence) -> Score:
        forget = self.membership or Accuracy(part="forget")
        measures = {"forget": forget, "retain": Accuracy(part="retain"), "test": Accuracy(part="test")}
        gaps = {part: paired_gaps(metric, evidence).numpy() for part, metric in measures.items()}
        factors = {part: 1 - abs(float(values.mean())) for part, values in gaps.items()}
        value = float(np.prod(list(factors.values())))
        draws = [
            1 - np.abs(statistics.resampled_means(values, seed=index))
            for index, values in enumerate(gaps.values())
        ]
        low, high = statistics.percentile(np.prod(draws, axis=0))
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=value,
            interval=(min(low, value), max(high, value)),
            n=sum(len(values) for values in gaps.values()),
            target="high",
            unit="fraction",
            details={"factors": factors},
        )
