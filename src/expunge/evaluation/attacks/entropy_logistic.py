"""The attack of the bad-teaching line: how sure the model is, whatever of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from expunge.evaluation.attacks import signals
from expunge.evaluation.attacks.membership import Membership
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics


@metrics.register("entropy_logistic")
@dataclass(frozen=True, kw_only=True)
class EntropyLogistic(Membership):
    """The fraction of the forget set that a logistic regression on entropy calls *members*.

    ``P(member | x) = σ(w H(p_θ(·|x)) + b)`` with the entropy ``H = −Σ_k p_k log p_k`` in nats, fitted on
    all retain (members) against all test examples (non-members) of the model being judged, the two
    sides weighted equally. The value counts members, the opposite of ``svc``: less means more forgotten.

    Ideal: the retrained model's value, not 0: a model that generalises is sure of unseen examples too.
    Cost: one logistic regression on one number; 0.1 seconds for 60,000 examples.
    Differs: the published call ``multi_class="multinomial"`` is no longer in scikit-learn. For two
        classes it is the ordinary regression with half the penalty, ``C = 2``, which is fitted here. An
        entropy that is the same everywhere is refused, where the published code answers all or nothing.
    References: Chundawat et al., Can Bad Teaching Induce Forgetting?, AAAI 2023, arXiv:2205.08096;
        Foster et al., Selective Synaptic Dampening, AAAI 2024, arXiv:2308.07707.
    """

    value_of: ClassVar[Literal["members", "others"]] = "members"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "membership", "forget", "entropy-logistic"

    def signal(self, evidence: Evidence, part: str) -> Tensor:
        return signals.read(evidence, part, "entropy")

    def members(self, retain: Tensor, test: Tensor, n: int, forget: Tensor) -> Tensor:
        from sklearn.linear_model import LogisticRegression

        sides = np.repeat([1.0, 0.0], [len(retain), len(test)])
        model = LogisticRegression(C=2.0, class_weight="balanced", solver="lbfgs", random_state=0)
        model.fit(torch.cat([retain, test]).numpy()[:, None], sides)
        return torch.from_numpy(model.predict(forget.numpy()[:, None])).eq(1)
