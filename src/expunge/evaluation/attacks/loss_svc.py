"""Membership inference on a regressor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.errors import ConfigError, DataError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.regression import absolute_errors
from expunge.evaluation.score import Score


@metrics.register("loss_svc")
@dataclass(frozen=True, kw_only=True)
class LossSVC(Metric):
    """Membership inference on a regressor: a support vector machine on each example's absolute error.

    ``SVC(kernel=rbf, C=3, gamma=auto)`` on the one feature ``|f(x) − y|``, fitted on ``sample`` random
    training examples (members) against as many test examples. The value is the fraction of the forget set
    called a *member*, the published sign, opposite to that of ``svc``. Interval: Clopper–Pearson.

    Args:
        sample: examples of each; as many as the smaller part has, where that is fewer.
        definition: ``corrected`` takes members from retain and divides errors by their standard
            deviation over the fitted examples; ``conformance`` does neither.

    Ideal: the retrained models' value, not 0 and not ½.
    Cost: quadratic in ``sample``; a second for 2,000.
    Differs: the authors draw members from all training data, the forget set among them, which the
        retrained model never saw; and since ``gamma`` is 1 whatever the scale of the errors, their value
        changes with the unit that targets are measured in. Both are gone under ``corrected``.
    References: Tarun et al., Deep Regression Unlearning, ICML 2023, arXiv:2210.08196.
    """

    sample: int = 2000
    definition: Literal["corrected", "conformance"] = "corrected"

    def __post_init__(self) -> None:
        if self.sample < 2:
            raise ConfigError(f"must be at least 2, got {self.sample}.", "sample")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        ending = "-conformance" if self.definition == "conformance" else ""
        return "membership", "forget", f"loss-svc-member{ending}"

    def measure(self, evidence: Evidence) -> Score:
        errors = {
            part: absolute_errors(evidence, evidence.subject, part) for part in ("retain", "test", "forget")
        }
        member = self.members(evidence, errors)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(member.double().mean()),
            interval=statistics.interval(member.double().numpy(), evidence.clusters("forget")),
            n=len(member),
            target="retrained",
            unit="fraction",
            per_example=member.double(),
        )

    def members(self, evidence: Evidence, errors: dict[str, Tensor]) -> Tensor:
        """Which forget examples are called members, ``(N_f,)`` of booleans."""
        from sklearn import svm

        conforming = self.definition == "conformance"
        inside = torch.cat([errors["retain"], errors["forget"]]) if conforming else errors["retain"]
        n = min(self.sample, len(inside), len(errors["test"]))
        drawn = [
            values[torch.randperm(len(values), generator=evidence.session.generator("loss_svc", part))[:n]]
            for part, values in (("members", inside), ("test", errors["test"]))
        ]
        known = torch.cat(drawn)
        spread = float(known.std())
        if spread == 0:
            raise DataError(
                "the model errs by the same amount on every example, so nothing can be told apart."
            )
        scale = 1.0 if conforming else spread
        labels = torch.cat([torch.ones(n), torch.zeros(n)])
        machine = svm.SVC(C=3.0, gamma="auto", kernel="rbf", random_state=0)
        machine.fit((known / scale).view(-1, 1), labels)
        return torch.from_numpy(machine.predict((errors["forget"] / scale).view(-1, 1))).eq(1)
