"""Whether forgetting stopped short of retraining or went past it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from expunge.errors import MissingEvidence
from expunge.evaluation import breakdown, statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score


@metrics.register("signed_gap")
@dataclass(frozen=True, kw_only=True)
class SignedGap(Metric):
    """How far the model's confidence is above or below that of retrained models, in their spread.

    ``mean_i (m_i − mean_r m_ri) / max(sd_r m_ri, s)`` with ``m`` the logit-scaled confidence of example
    ``i`` and ``s`` the root mean square of the spreads over all examples. Positive: the model is surer
    than models that never saw the examples; it still remembers. Negative: it is less sure; forgetting
    went too far, and who compares knows that these examples were deleted. Both signs cancel in the mean,
    so ``details`` has the fractions of examples above 2 and below −2. Interval: bootstrap of the mean over
    examples, clustered by subject where there are subjects.

    Ideal: 0. The retrained models' own values, each against the others, stray from it because what
        differs between two models differs in the same direction for many examples.

    Cost: nothing beyond the forward pass.
    References: Unlearning isn't invisible, arXiv:2506.14003; FUMA, EMNLP 2025 (that over-unlearning
        leaks).
    """

    part: Literal["forget", "retain", "test"] = "forget"
    unit = "index"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "signed gap", self.part, "margin"

    def measure(self, evidence: Evidence) -> Score:
        others = evidence.references()
        if len(others) < 2:
            raise MissingEvidence(
                "a signed gap in units of the retrained models' spread needs at least two (other) retrained "
                "models; there is one. Give more of them."
            )
        mine = evidence.subject.read(self.part).margin.double()
        margins = torch.stack([other.read(self.part).margin for other in others]).double()
        z = breakdown.standardised(mine, margins)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(z.mean()),
            interval=statistics.mean(z.numpy(), clusters=evidence.clusters(self.part)),
            n=len(z),
            target="retrained",
            unit="index",
            details={"above": float((z > 2).double().mean()), "below": float((z < -2).double().mean())},
        )
