"""Membership inference on the model itself: do forget examples look like unseen ones?"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from expunge.errors import ConfigError, DataError
from expunge.evaluation import statistics
from expunge.evaluation.attacks import signals
from expunge.evaluation.attacks.signals import Definition, Signal
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score

BINS = 750
"""The binned SVC stands on at most so many weighted points of members, and as many of non-members."""


class Membership(Metric):
    """Fits an attack on one signal of retain (members) and test (non-members), judges the forget set.

    The value is the fraction of the forget set that is called *not* a member (``value_of``), with its
    Clopper–Pearson interval. The ideal is the retrained model's value, not 0, ½ or 1.
    """

    value_of: ClassVar[Literal["members", "others"]] = "others"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "membership", "forget", f"{metrics.name_of(self)}-confidence"

    def signal(self, evidence: Evidence, part: str) -> Tensor:
        """What the attack reads of each example of a part, ``(N,)`` or ``(N, D)``."""
        return signals.read(evidence, part, "confidence")

    def measure(self, evidence: Evidence) -> Score:
        found = {part: self.signal(evidence, part) for part in ("retain", "test", "forget")}
        for part, values in found.items():
            if not bool(values.isfinite().all()):
                raise DataError(f"what the attack reads of {part} is NaN or infinite for some examples.")
        retain, test = found["retain"], found["test"]
        if bool((retain == retain[0]).all()) and bool((test == retain[0]).all()):
            raise DataError(
                "the attack reads the same value from every retain and test example, so it learns nothing."
            )
        called = self.members(retain, test, min(len(retain), len(test)), found["forget"]).double()
        counted = called if self.value_of == "members" else 1.0 - called
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(counted.mean()),
            interval=statistics.interval(counted.numpy(), evidence.clusters("forget")),
            n=len(counted),
            target="retrained",
            unit="fraction",
            per_example=counted,
        )

    @abstractmethod
    def members(self, retain: Tensor, test: Tensor, n: int, forget: Tensor) -> Tensor:
        """Which forget examples the attack calls members, ``(N_f,)`` of booleans.

        Args:
            retain, test, forget: the signal of each example, ``(N,)`` or ``(N, D)``.
            n: the smaller of the numbers of retain and test examples.
        """


@metrics.register("svc")
@dataclass(frozen=True, kw_only=True)
class SVC(Membership):
    """MIA-efficacy as published: a support vector machine on one feature of the answers.

    ``SVC(kernel=rbf, C=3, gamma=auto)`` fitted on the first ``n_test`` retain examples in stored order
    against the test set, on the model being judged; the value is the fraction of the forget set on the
    non-members' side. The feature that is reported is the true label's probability ``p_θ(y|x)``.

    Args:
        feature: what the machine sees: ``confidence``, ``correctness``, ``entropy``,
            ``modified_entropy``, or the ``probabilities`` of all classes.
        definition: of the modified entropy; the other features have one definition only.
        solver: ``exact``, or ``binned``: the values of either side are put in 750 bins of equally many
            neighbours, and the same machine is fitted on the bins' means with the sizes as weights.
            Within 0.5 percentage points of the exact one and more than twenty times as fast on 10,000 +
            10,000 points; only for features of one number.

    Ideal: the retrained model's value (12.9 % is published for CIFAR-10, 10 % forgotten at random), not
        0, 50 or 100 %. The attack is weak: a model that changes its last layer only can pass it.
    Cost: quadratic in the number of test examples: 15 to 40 seconds for 10,000; ``binned`` about 1.
    Differs: where there are fewer retain than test examples the published code fails; here as many of
        each as the smaller has are taken, the first ones. The published modified entropy takes
        ``log p`` for ``log(1 − p)`` and changes the columns of all rows at once, so that it falls where
        the true one rises; ``conformance`` keeps that.
    References: Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023,
        arXiv:2304.04934; code Unlearn-Sparse, ``SVC_MIA``. Song and Mittal, USENIX Security 2021,
        arXiv:2003.10595 (the features).
    """

    feature: Signal = "confidence"
    definition: Definition = "corrected"
    solver: Literal["exact", "binned"] = "exact"

    def __post_init__(self) -> None:
        if self.solver == "binned" and self.feature == "probabilities":
            raise ConfigError(
                "bins need a feature of one number, and the probabilities are one for each class. "
                "Use the exact solver.",
                "solver",
            )

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = ["svc", self.feature.replace("_", "-")]
        words += ["binned"] * (self.solver == "binned")
        words += ["conformance"] * (self.feature == "modified_entropy" and self.definition == "conformance")
        return "membership", "forget", "-".join(words)

    def signal(self, evidence: Evidence, part: str) -> Tensor:
        return signals.read(evidence, part, self.feature, self.definition)

    def members(self, retain: Tensor, test: Tensor, n: int, forget: Tensor) -> Tensor:
        from sklearn import svm

        points, weights = zip(*(self._points(values[:n].numpy()) for values in (retain, test)), strict=True)
        sides = np.repeat([1.0, 0.0], [len(values) for values in points])
        machine = svm.SVC(C=3.0, gamma="auto", kernel="rbf", random_state=0)
        machine.fit(np.concatenate(points), sides, sample_weight=np.concatenate(weights))
        judged = forget.numpy().reshape(len(forget), -1)
        return torch.from_numpy(machine.predict(judged)).eq(1)

    def _points(self, values: statistics.Floats) -> tuple[statistics.Floats, statistics.Floats]:
        """What the machine is fitted on for one side: points ``(K, D)`` and weights ``(K,)``."""
        if self.solver == "exact" or len(values) <= BINS:
            return values.reshape(len(values), -1), np.ones(len(values))
        starts = np.arange(BINS) * len(values) // BINS
        sizes = np.diff(np.append(starts, len(values))).astype(np.float64)
        means = np.add.reduceat(np.sort(values), starts) / sizes
        return means[:, None], sizes


@metrics.register("threshold")
@dataclass(frozen=True, kw_only=True)
class Threshold(Membership):
    """The best single threshold on the true label's probability; the SVC's feature at no cost.

    An example is a member if ``p_θ(y|x) ≥ t``, ``t`` the threshold with the highest balanced accuracy
    between all retain and all test examples (of equal ones the highest). Where no threshold beats
    chance, nothing is called a member.

    Ideal: the retrained model's value: the fraction of never seen examples below the threshold.
    Cost: one sort of the confidences.
    References: Yeom et al., Privacy Risk in Machine Learning, CSF 2018, arXiv:1709.01604; Song and
        Mittal, USENIX Security 2021, arXiv:2003.10595.
    """

    def members(self, retain: Tensor, test: Tensor, n: int, forget: Tensor) -> Tensor:
        candidates = torch.unique(torch.cat([retain, test]))
        # of each candidate t: the fraction of members and of non-members with p ≥ t
        hits = 1 - torch.searchsorted(torch.sort(retain).values, candidates).double() / len(retain)
        alarms = 1 - torch.searchsorted(torch.sort(test).values, candidates).double() / len(test)
        gain = hits - alarms
        best = len(gain) - 1 - int(gain.flip(0).argmax())
        if gain[best] <= 0:
            return torch.zeros(len(forget), dtype=torch.bool)
        return forget.ge(candidates[best])
