"""Membership inference on the model itself: do forget examples look like unseen ones?"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.errors import DataError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score


class Membership(Metric):
    """Fits an attack on confidences of retain (members) and test (non-members), judges the forget set.

    The value is the fraction of the forget set that is called *not* a member, with its
    Clopper–Pearson interval. The ideal is the retrained model's value, not 0, ½ or 1.
    """

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "membership", "forget", f"{metrics.name_of(self)}-confidence"

    def measure(self, evidence: Evidence) -> Score:
        confidence = {
            part: evidence.subject.read(part).confidence.double() for part in ("retain", "test", "forget")
        }
        for part, values in confidence.items():
            if not bool(values.isfinite().all()):
                raise DataError(f"the model's confidence on {part} is NaN for some examples.")
        n = min(len(confidence["retain"]), len(confidence["test"]))
        member = self.members(confidence["retain"], confidence["test"], n, confidence["forget"])
        outside = 1.0 - member.double()
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(outside.mean()),
            interval=statistics.rate(int(outside.sum()), len(outside)),
            n=len(outside),
            target="retrained",
            unit="fraction",
            per_example=outside,
        )

    @abstractmethod
    def members(self, retain: Tensor, test: Tensor, n: int, forget: Tensor) -> Tensor:
        """Which forget examples the attack calls members, ``(N_f,)`` of booleans.

        Args:
            retain, test, forget: ``p(y|x)`` of each example, ``(N,)``.
            n: the smaller of the numbers of retain and test examples.
        """


@metrics.register("svc")
@dataclass(frozen=True, kw_only=True)
class SVC(Membership):
    """MIA-efficacy as published: a support vector machine on the true label's probability.

    ``SVC(kernel=rbf, C=3, gamma=auto)`` on the one feature ``p_θ(y|x)``, fitted on the first
    ``n_test`` retain examples in stored order against the test set, on the model being judged.

    Differs: where there are fewer retain than test examples the published code fails; here as many of
        each as the smaller has are taken, the first ones. The other four published features are not
        part of it; its modified entropy is wrong in the code that everybody copied.
    Cost: quadratic in the number of test examples; seconds for 10,000.
    References: Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023,
        arXiv:2304.04934; code Unlearn-Sparse, ``SVC_MIA``.
    """

    def members(self, retain: Tensor, test: Tensor, n: int, forget: Tensor) -> Tensor:
        from sklearn import svm

        known = torch.cat([retain[:n], test[:n] if len(test) > n else test])
        labels = torch.cat([torch.ones(n), torch.zeros(len(known) - n)])
        machine = svm.SVC(C=3.0, gamma="auto", kernel="rbf").fit(known.view(-1, 1), labels)
        return torch.from_numpy(machine.predict(forget.view(-1, 1))).eq(1)


@metrics.register("threshold")
@dataclass(frozen=True, kw_only=True)
class Threshold(Membership):
    """The best single threshold on the true label's probability; the SVC's feature at no cost.

    An example is a member if ``p_θ(y|x) ≥ t``, ``t`` the threshold with the highest balanced accuracy
    between all retain and all test examples (of equal ones the highest). Where no threshold beats
    chance, nothing is called a member.

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
