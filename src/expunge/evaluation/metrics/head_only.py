"""Whether a model forgot in its last layer alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.errors import DataError, Unsupported
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.probes import LinearProbe
from expunge.evaluation.metrics.utility import Accuracy
from expunge.evaluation.score import Score

Floats = NDArray[np.float64]

SURE = 2.0
"""Standard errors by which original and retrained models must differ for a way between them."""

LEAST = 0.1
"""What they must differ by in any case: parts of a shorter way are mostly noise."""


@dataclass(frozen=True)
class Way:
    """What the subject, the original and the retrained models' mean do on each forget example, ``(N,)``."""

    subject: Floats
    original: Floats
    retrained: Floats

    @property
    def done(self) -> float:
        """``(o − u) / (o − r)`` of the means: 0 where the original stands, 1 where retraining does."""
        return float((self.original - self.subject).mean() / (self.original - self.retrained).mean())

    def draws(self) -> Floats:
        """Bootstrap draws of ``done``, over the same examples for every ``Way`` of ``N`` examples."""
        ahead = statistics.resampled_means(self.original - self.subject, seed=0)
        whole = statistics.resampled_means(self.original - self.retrained, seed=0)
        floor = 0.1 * abs(float((self.original - self.retrained).mean()))
        return np.asarray(ahead / np.maximum(whole, floor))


@metrics.register("head_only")
@dataclass(frozen=True, kw_only=True)
class HeadOnly(Metric):
    """How much further the outputs went towards retraining than the representation behind them.

    ``(a_o − a_u) / (a_o − a_r) − (p_o − p_u) / (p_o − p_r)`` with ``a`` the model's accuracy on the
    forget set and ``p`` that of a linear probe on its penultimate representation (``LinearProbe`` with
    ``shots`` labels a class), of the original ``o``, the model ``u`` and the mean of the retrained models
    ``r``. 1 is head-only forgetting: the outputs have forgotten, the representation has not begun to.
    ``details["note"]`` says both parts in words. Interval: percentile bootstrap over the forget
    examples, paired between all models.

    Ideal: 0, and so it is for doing nothing: read it beside the forget accuracy. The retrained models'
        own values, each against the others, say how far it strays by chance.

    Args:
        shots, repeats, limit: of the linear probe.

    Cost: the linear probe's, shared with it where its settings are the same.
    References: the idea of comparing logits with features is from Are We Truly Forgetting?,
        arXiv:2503.06991; the index is our own.
    """

    shots: int = 1
    repeats: int = 10
    limit: int = 2000

    unit = "index"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "head-only forgetting", "forget", f"{self.shots}-shot" if self.shots else "all-labels"

    def measure(self, evidence: Evidence) -> Score:
        probe = LinearProbe(shots=self.shots, repeats=self.repeats, limit=self.limit)
        outputs = self._way(evidence, Accuracy(part="forget"), "outputs")
        features = self._way(evidence, probe, "features")
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=outputs.done - features.done,
            interval=statistics.percentile(outputs.draws() - features.draws()),
            n=len(outputs.subject),
            target="retrained",
            unit="index",
            details={
                "outputs": outputs.done,
                "features": features.done,
                "note": f"the outputs moved {outputs.done:.0%} of the way to retraining, the features "
                f"{features.done:.0%}",
            },
        )

    def _way(self, evidence: Evidence, metric: Metric, what: str) -> Way:
        def values(found: Evidence) -> Floats:
            each = evidence.of(found.subject).score(metric).per_example
            if each is None:
                raise Unsupported(
                    f"head-only forgetting is measured on all forget examples; there are "
                    f"{len(evidence.parts['forget'])}, more than limit={self.limit}. Raise the limit."
                )
            return np.asarray(each.double().numpy())

        original = values(evidence.of(evidence.original))
        others = [values(evidence.of(other)) for other in evidence.references()]
        way = Way(values(evidence), original, np.mean(others, axis=0))
        distance = original - way.retrained
        error = statistics.standard_error(distance, evidence.clusters("forget"))
        if not distance.mean() > max(SURE * error, LEAST):
            raise DataError(
                f"the {what} of the retrained models tell the forget examples' classes nearly as well as the "
                f"original's ({way.retrained.mean():.1%} against {original.mean():.1%}), so there is no way "
                "between them to measure."
            )
        return way
