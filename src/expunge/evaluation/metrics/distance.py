"""How far a model's outputs are from a retrained model's."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from expunge.errors import DataError, Unsupported
from expunge.evaluation import statistics
from expunge.evaluation.attacks.membership import Threshold
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.utility import Accuracy
from expunge.evaluation.score import Score
from expunge.tasks.classification import Classification


@dataclass(frozen=True, kw_only=True)
class Distance(Metric):
    """A number for each example and each retrained model, averaged over both.

    ``mean_i mean_r d(f_θ(x_i), f_r(x_i))``. It stands in the rows of the retrained models too, each
    compared with the others. Interval: bootstrap over examples, over subjects where there are some.
    """

    part: Literal["forget", "retain", "test"] = "forget"

    @abstractmethod
    def between(self, retrained: Tensor, evidence: Evidence) -> Tensor:
        """The distance of the subject's outputs from one retrained model's ``(N, …)``. Shape ``(N,)``."""

    def mine(self, evidence: Evidence) -> Tensor:
        """The subject's outputs on the part, ``(N, …)``."""
        return evidence.subject.read(self.part).outputs

    def measure(self, evidence: Evidence) -> Score:
        each = [self.between(outputs, evidence) for outputs in evidence.compared(self.part)]
        values = torch.stack(each).mean(0).double()
        name, part, variant = self.labels(evidence)
        bad = ~values.isfinite()
        if bad.any():
            raise DataError(
                f"the {variant or name} of '{evidence.subject.name}' from retraining is infinite or NaN for "
                f"{int(bad.sum())} of {len(bad)} {part} examples: one gives probability 0 where the other "
                "does not. Use jensen_shannon, which is bounded."
            )
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.mean(values.numpy(), clusters=evidence.clusters(self.part)),
            n=len(values),
            target=self.target,
            unit=self.unit,
            per_example=values,
        )


@metrics.register("jensen_shannon")
@dataclass(frozen=True, kw_only=True)
class JensenShannon(Distance):
    """Jensen–Shannon divergence between the model's outputs and the retrained models', in nats.

    ``mean_i mean_r JS(p_θ(·|x_i), p_r(·|x_i))``, ``JS(p, q) = ½ KL(p‖m) + ½ KL(q‖m)``,
    ``m = (p + q)/2``; in ``[0, ln 2]``. Interval: bootstrap over examples.

    Ideal: the value of the retrained models, each compared with the others. Zero is not attainable: two
        honest retrains differ.
    Differs: the field's ZRF averages over examples × classes and takes the divergences with their
        arguments exchanged; this is the textbook quantity and not to be compared with it.
    Cost: nothing beyond the forward passes.
    References: Lin, Divergence Measures Based on the Shannon Entropy, 1991.
    """

    unit = "nats"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "divergence", self.part, "jensen-shannon"

    def between(self, retrained: Tensor, evidence: Evidence) -> Tensor:
        return evidence.task.jensen_shannon(self.mine(evidence), retrained, evidence.batch(self.part))


@metrics.register("kl")
@dataclass(frozen=True, kw_only=True)
class KL(Distance):
    """Kullback–Leibler divergence between the model's outputs and the retrained models', in nats.

    ``mean_i mean_r KL(p_r(·|x_i) ‖ p_θ(·|x_i))``, summed over classes; ``direction: reverse`` exchanges the
    two. Forward, it is large where the model excludes what a retrained one holds possible; in reverse,
    where the model is sure of what a retrained one is not. Unbounded. Interval: bootstrap over examples.

    Ideal: the value of the retrained models, each compared with the others; not 0.
    Cost: nothing beyond the forward passes.
    Differs: code that takes PyTorch's ``kl_div`` with its default reduction divides by examples × classes,
        and by its argument order computes the other direction than it says.
    References: Kullback and Leibler, Annals of Mathematical Statistics 22, 1951.
    """

    direction: Literal["forward", "reverse"] = "forward"
    unit = "nats"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "divergence", self.part, f"kl-{self.direction}"

    def between(self, retrained: Tensor, evidence: Evidence) -> Tensor:
        mine, batch = self.mine(evidence), evidence.batch(self.part)
        if self.direction == "forward":
            return evidence.task.divergence(retrained, mine, batch)
        return evidence.task.divergence(mine, retrained, batch)


@metrics.register("activation_distance")
@dataclass(frozen=True, kw_only=True)
class ActivationDistance(Distance):
    """Euclidean distance between the model's class probabilities and the retrained models'.

    ``mean_i mean_r ‖p_θ(·|x_i) − p_r(·|x_i)‖₂`` with ``p`` the softmax outputs, not hidden activations as
    the name suggests; in ``[0, √2]``. Classification only. Interval: bootstrap over examples.

    Ideal: the value of the retrained models, each compared with the others; not 0.
    Cost: nothing beyond the forward passes.
    References: Golatkar et al., CVPR 2021, arXiv:2012.13431; Chundawat et al., Bad Teaching, AAAI 2023,
        arXiv:2205.08096.
    """

    unit = "index"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "activation distance", self.part, ""

    def between(self, retrained: Tensor, evidence: Evidence) -> Tensor:
        needs_classes("the activation distance", evidence)
        p, q = (torch.softmax(outputs.double(), -1) for outputs in (self.mine(evidence), retrained))
        difference: Tensor = p - q
        return difference.square().sum(-1).sqrt()


@metrics.register("completeness")
@dataclass(frozen=True, kw_only=True)
class Completeness(Distance):
    """The fraction of examples on which the model predicts the same class as a retrained one.

    ``mean_i mean_r 1[argmax f_θ(x_i) = argmax f_r(x_i)]``, whether or not the class is right. Classification
    only. Interval: bootstrap over examples.

    Ideal: the value of the retrained models, each compared with the others. That agreement between honest
        retrains is the ceiling; 1 is not attainable.
    Cost: nothing beyond the forward passes.
    References: Cao and Yang, Towards Making Systems Forget with Machine Unlearning, IEEE S&P 2015.
    """

    part: Literal["forget", "retain", "test"] = "test"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "completeness", self.part, ""

    def between(self, retrained: Tensor, evidence: Evidence) -> Tensor:
        needs_classes("completeness", evidence)
        return self.mine(evidence).argmax(-1).eq(retrained.argmax(-1)).double()


@metrics.register("average_gap")
@dataclass(frozen=True, kw_only=True)
class AverageGap(Metric):
    """The mean absolute distance from retraining over four measures (Avg. Gap).

    ``¼ Σ_m |v_m(θ) − mean_r v_m(θ_r)|`` over accuracy on forget, retain and test and the membership
    attack ``membership``, which is the score's variant. Interval: percentile bootstrap over the
    examples of each part, paired between the model and the retrained ones. Lower is better.

    Ideal: the value of the retrained models, each compared with the others; not 0.
    Differs: the literature averages percentages of one run against the mean of ten; here the models
        compared with are the retrained ones of this table.
    Cost: four readings of stored outputs, and the attack's fit.
    References: Fan et al., SalUn, ICLR 2024, arXiv:2310.12508 (the tables' last column).
    """

    membership: Metric = Threshold()
    target = "low"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "average gap", "", self.membership.labels(evidence)[2].removesuffix("-confidence")

    def measure(self, evidence: Evidence) -> Score:
        measures: list[Metric] = [Accuracy(part=part) for part in ("forget", "retain", "test")]
        measures.append(self.membership)
        total, draws, n = 0.0, np.zeros(1), 0
        for index, metric in enumerate(measures):
            gaps = paired_gaps(metric, evidence).numpy()
            total += abs(float(gaps.mean())) / len(measures)
            draws = draws + np.abs(statistics.resampled_means(gaps, seed=index)) / len(measures)
            n += len(gaps)
        return Score(
            name="average gap",
            variant=self.labels(evidence)[2],
            value=total,
            interval=statistics.percentile(draws),
            n=n,
            target="low",
            unit="fraction",
        )


def paired_gaps(metric: Metric, evidence: Evidence) -> Tensor:
    """What a metric finds for each example less the mean over the (other) retrained models. ``(N,)``.

    Raises:
        Unsupported: the metric has no value for each example.
        MissingEvidence: there is no other retrained model.
    """
    others = [_values(metric, evidence.of(other)) for other in evidence.references()]
    return _values(metric, evidence) - torch.stack(others).mean(0)


def needs_classes(what: str, evidence: Evidence) -> None:
    """Refuses a task whose outputs are not one distribution over classes for each example.

    Raises:
        Unsupported: the task is not classification.
    """
    if not isinstance(evidence.task, Classification):
        task = type(evidence.task).__name__
        raise Unsupported(f"{what} compares class probabilities; the task '{task}' has none.")


def _values(metric: Metric, evidence: Evidence) -> Tensor:
    """What a metric found for each example, ``(N,)`` in double precision."""
    score = evidence.score(metric)
    if score.per_example is None:
        raise Unsupported(f"'{score.title}' has no value for each example, so its gap has no interval.")
    return score.per_example.double()
