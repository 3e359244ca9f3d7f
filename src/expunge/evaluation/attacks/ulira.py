"""The likelihood-ratio attack on unlearning itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from expunge.errors import ConfigError, MissingEvidence
from expunge.evaluation.attacks.lira import LiRA
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.evaluation.shadows import Shadows


@metrics.register("ulira")
@dataclass(frozen=True, kw_only=True)
class ULiRA(LiRA):
    """Whether an example was trained on and then unlearned, or was never seen at all.

    The score is LiRA's, with the shadow models treated by the unlearning method: in are the models
    that were trained on the example and then unlearned it, out those that never had it and unlearned
    others. An attacker who knows the method is so met at full strength; LiRA, which expects the
    confidence of a model that still has the example, is not. Members are the forget set; non-members
    are the test examples that were audited too (see ``treat``).

    Args:
        method: whose treated shadow models are used; empty for those of the row that is judged. With a
            name, the original and retrained models can be judged by the same rule.

    Ideal: 0.5 (AUC, balanced accuracy), the false positive rate itself (TPR): that of a retrained model,
        up to sampling.
    Cost: the shadow trainings, one unlearning of each shadow model for each method, one reading of the
        subject.
    Differs: each treated model unlearns about as many examples as the request, half of them forget and
        half test examples, so one set of models serves every example; the paper trains them for each.
    References: Hayes et al., Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of
        Privacy, 2024, arXiv:2403.01218.
    """

    method: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part != "forget":
            raise ConfigError(f"is about what was unlearned; it takes forget, not {self.part}.", "part")

    def named(self) -> str:
        return "-".join([super().named(), *([self.method] if self.method else [])])

    def shadows(self, evidence: Evidence) -> Shadows:
        name = self.method or evidence.subject.name
        treated = super().shadows(evidence).treated
        if name not in treated:
            known = ", ".join(sorted(treated)) or "none"
            raise MissingEvidence(
                f"no shadow models were treated with '{name}' (treated: {known}). Give the name of a method "
                "whose shadow models were."
            )
        return treated[name]

    def judge(self, evidence: Evidence, shadows: Shadows) -> tuple[Tensor, Tensor]:
        members, others = super().judge(evidence, shadows)
        return members[shadows.judged(self.part)], others[shadows.judged(self.against)]
