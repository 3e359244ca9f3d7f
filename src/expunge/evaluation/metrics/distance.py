"""How far a model's outputs are from a retrained model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from expunge.errors import Unsupported
from expunge.evaluation import statistics
from expunge.evaluation.attacks.membership import Threshold
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.utility import Accuracy
from expunge.evaluation.score import Score


@metrics.register("jensen_shannon")
@dataclass(frozen=True, kw_only=True)
class JensenShannon(Metric):
    """Jensen–Shannon divergence between the model's outputs and the retrained models', in nats.

    ``mean_i mean_r JS(p_θ(·|x_i), p_r(·|x_i))``, ``JS(p, q) = ½ KL(p‖m) + ½ KL(q‖m)``,
    ``m = (p + q)/2``; in ``[0, ln 2]``. Zero is not attainable: two honest retrains differ, and what
    they differ by is the value to reach. It stands in the rows of the retrained models, each compared
    with the others. Interval: percentile bootstrap over examples.

    Differs: the field's ZRF averages over examples × classes and takes the divergences with their
        arguments exchanged; this is the textbook quantity and not to be compared with it.
    Cost: nothing beyond the forward passes.
    References: Lin, Divergence Measures Based on the Shannon Entropy, 1991.
    """

    part: Literal["forget", "retain", "test"] = "forget"
    unit = "nats"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "divergence", self.part, "jensen-shannon"

    def measure(self, evidence: Evidence) -> Score:
        batch = evidence.batch(self.part)
        mine = evidence.subject.read(self.part).outputs
        each = [
            evidence.task.jensen_shannon(mine, other.read(self.part).outputs, batch)
            for other in evidence.references()
        ]
        values = torch.stack(each).mean(0).double()
        return Score(
            name="divergence",
            part=self.part,
            variant="jensen-shannon",
            value=float(values.mean()),
            interval=statistics.mean(values.numpy()),
            n=len(values),
            target="retrained",
            unit="nats",
            per_example=values,
        )


@metrics.register("average_gap")
@dataclass(frozen=True, kw_only=True)
class AverageGap(Metric):
    """The mean absolute distance from retraining over four measures (Avg. Gap).

    ``¼ Σ_m |v_m(θ) − mean_r v_m(θ_r)|`` over accuracy on forget, retain and test and the membership
    attack ``membership``, which is the score's variant. Interval: percentile bootstrap over the
    examples of each part, paired between the model and the retrained ones. Lower is better, and the
    retrained models' own value, each against the others, is the floor.

    Differs: the literature averages percentages of one run against the mean of ten; here the models
        compared with are the retrained ones of this table.
    Cost: four readings of stored outputs, and the attack's fit.
    References: Fan et al., SalUn, ICLR 2024, arXiv:2310.12508 (the tables' last column).
    """

    membership: Metric = Threshold()
    target = "low"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "average gap", "", metrics.name_of(self.membership)

    def measure(self, evidence: Evidence) -> Score:
        measures: list[Metric] = [Accuracy(part=part) for part in ("forget", "retain", "test")]
        measures.append(self.membership)
        total, draws, n = 0.0, np.zeros(1), 0
        for index, metric in enumerate(measures):
            mine = _values(metric, evidence)
            others = [_values(metric, evidence.of(other)) for other in evidence.references()]
            gaps = (mine - torch.stack(others).mean(0)).numpy()
            total += abs(float(gaps.mean())) / len(measures)
            draws = draws + np.abs(statistics.resampled_means(gaps, seed=index)) / len(measures)
            n += len(gaps)
        return Score(
            name="average gap",
            variant=metrics.name_of(self.membership),
            value=total,
            interval=statistics.percentile(draws),
            n=n,
            target="low",
            unit="fraction",
        )


def _values(metric: Metric, evidence: Evidence) -> Tensor:
    """What a metric found for each example, ``(N,)`` in double precision."""
    score = evidence.score(metric)
    if score.per_example is None:
        raise Unsupported(f"'{score.title}' has no value for each example, so its gap has no interval.")
    return score.per_example.double()
