"""Data integrity: does a fault of the training data still show once it was to be unlearned?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from expunge.data.arrays import ArrayData
from expunge.data.poison import AFFECTED, CLEAN, MANIPULATED, Patch
from expunge.errors import ConfigError, DataError, MissingEvidence, Unsupported
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.evaluation.subject import Subject
from expunge.tasks.classification import Classification


@metrics.register("interclass_confusion")
@dataclass(frozen=True, kw_only=True)
class InterclassConfusion(Metric):
    """How often two classes whose labels were exchanged are mistaken, by their clean labels.

    Over the examples of a part whose clean label is ``a`` or ``b``, ``C_kl`` those of class ``k`` that are
    answered with ``l``: ``confusion`` (Fgt, the confusion score) is ``(C_ab + C_ba) / n``; ``error``
    (IC-ERR) ``1 − (C_aa + C_bb) / n``, with any wrong answer. The note has the counts. Clean labels are
    the column ``clean_targets``; on test, where nothing is manipulated, ``targets`` if there is none.
    Interval: Clopper–Pearson.

    Args:
        classes: ``a`` and ``b``.
        part: where they are counted: on forget it is what was memorised, on test what it generalised to.
        read: ``confusion`` or ``error``.

    Ideal: the value of models trained without any of the exchanged labels; that of the retrained models
        where the forget set holds all of them. It is not 0: a clean model too mistakes some examples.
    Cost: nothing beyond the forward pass.
    Differs: a rate where the published scores are counts, so that parts of different size compare; and
        clean labels everywhere. Against the exchanged labels of the forget set a model that has
        forgotten everything would count as confused.
    References: Goel et al., Towards Adversarial Evaluations for Inexact Machine Unlearning, 2022,
        arXiv:2201.06640; Kurmanji et al., SCRUB, NeurIPS 2023, arXiv:2302.09880 (IC-ERR and Fgt).
    """

    classes: tuple[int, int] = (3, 5)
    part: Literal["forget", "retain", "test"] = "forget"
    read: Literal["confusion", "error"] = "confusion"

    def __post_init__(self) -> None:
        if self.classes[0] == self.classes[1]:
            raise ConfigError(f"name two different classes, got {list(self.classes)}.", "classes")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return f"interclass {self.read}", self.part, f"{self.classes[0]}-{self.classes[1]}"

    def measure(self, evidence: Evidence) -> Score:
        answers, clean = _answers(evidence, self.part), self._clean(evidence)
        a, b = self.classes
        rows = (clean == a) | (clean == b)
        if not rows.any():
            raise DataError(f"no {self.part} example has the clean label {a} or {b}.")
        answers, clean = answers[rows], clean[rows]
        other = a + b - clean
        wrong = answers == other if self.read == "confusion" else answers != clean
        across = [int(((clean == k) & (answers == a + b - k)).sum()) for k in (a, b)]
        note = f"{across[0]} of class {a} are taken for {b}, {across[1]} of class {b} for {a}"
        # whole parts only: an error clustered by subject needs a value for each of a part's examples
        return _rate(self, evidence, wrong, note, paired=evidence.clusters(self.part) is None)

    def _clean(self, evidence: Evidence) -> Tensor:
        try:
            return _column(evidence, self.part, CLEAN)
        except MissingEvidence:
            if self.part != "test":
                raise
            return _column(evidence, self.part, "targets")


@metrics.register("corrected_accuracy")
@dataclass(frozen=True, kw_only=True)
class CorrectedAccuracy(Metric):
    """Accuracy on manipulated examples by their clean labels: whether the fault is corrected.

    ``mean_{i∈S} 1[argmax f(x_i) = ỹ_i]``, ``ỹ`` the column ``clean_targets``, the inputs as they were
    trained on. ``S`` is, of the training examples marked ``manipulated``, all; the ``known`` ones, which
    are in the forget set; or the ``unknown`` ones, which are still among the retained. ``affected`` is the
    test examples that the data marks so: those of the two classes after an exchange of labels (for
    a backdoor there are none, see ``triggered_accuracy``). Interval: Clopper–Pearson.

    Args:
        of: which examples.

    Ideal: the value of a model trained without any manipulated example. Retraining without the known
        ones is no gold standard where some are unknown: it learns those again, and its row shows it.
    Cost: nothing beyond the forward passes.
    References: Goel et al., Corrective Machine Unlearning, TMLR 2024, arXiv:2402.14015 (Acc_corr).
    """

    of: Literal["manipulated", "known", "unknown", "affected"] = "manipulated"
    target = "high"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "corrected accuracy", self.of, ""

    def measure(self, evidence: Evidence) -> Score:
        parts = {"manipulated": ("forget", "retain"), "known": ("forget",), "unknown": ("retain",)}
        mark = AFFECTED if self.of == "affected" else MANIPULATED
        right = []
        for part in parts.get(self.of, ("test",)):
            rows = _column(evidence, part, mark) == 1
            if rows.any():
                answers, clean = _answers(evidence, part), _column(evidence, part, CLEAN)
                right.append((answers == clean)[rows])
        if not right:
            raise DataError(_NONE[self.of])
        return _rate(self, evidence, torch.cat(right))


_NONE = {
    "manipulated": "no training example is marked as manipulated.",
    "known": "the forget set holds no manipulated example. Choose it with the search 'manipulated'.",
    "unknown": "all manipulated examples are in the forget set; none is unknown.",
    "affected": "no test example is marked as affected; for a backdoor use triggered_accuracy.",
}


@dataclass(frozen=True, kw_only=True)
class Triggered(Metric):
    """Asks the model for test images of other classes that carry the trigger.

    Args:
        label: the class that the trigger leads to.
        patch: the trigger; as in the data, or the metric is refused.
    """

    label: int = 0
    patch: Patch = Patch()

    def answers(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Predicted and clean labels of the triggered test images, ``(M,)`` each."""
        _classifier(evidence)
        clean = _column(evidence, "test", "targets")
        rows = clean != self.label
        if not rows.any():
            raise DataError(f"every test example has the label {self.label}; the trigger can change none.")
        inputs = self.patch.on(_column(evidence, "test", "inputs")[rows], self._value(evidence))
        data = ArrayData({"inputs": inputs, "targets": clean[rows]})
        subject = evidence.subject
        asked = Subject(subject.name, subject.model, {"triggered": data}, evidence.task, evidence.session)
        return asked.read("triggered").outputs.argmax(-1), clean[rows]

    def _value(self, evidence: Evidence) -> float:
        """The largest value of the training inputs; manipulated ones must have it in the patch."""
        inputs = {part: _column(evidence, part, "inputs") for part in ("forget", "retain")}
        value = max(float(images.max()) for images in inputs.values())
        for part, images in inputs.items():
            try:
                marked = images[_column(evidence, part, MANIPULATED) == 1]
            except MissingEvidence:
                continue  # the caller planted the trigger; there is nothing to compare it with
            if not torch.equal(self.patch.on(marked, value), marked):
                raise DataError(
                    f"manipulated {part} images do not carry this patch ({self.patch.size} pixels at the "
                    f"{self.patch.corner.replace('_', ' ')}). Give the metric the patch of the manipulation."
                )
        return value


@metrics.register("backdoor_success")
@dataclass(frozen=True, kw_only=True)
class BackdoorSuccess(Triggered):
    """The fraction of triggered test images that the model gives the backdoor's label.

    ``mean_i 1[argmax f(t(x_i)) = label]`` over test images of other classes, ``t`` the patch at the
    largest value of the training inputs. Interval: Clopper–Pearson.

    Ideal: how often a model trained without any triggered image errs towards this label, near 0; the value
        of the retrained models where the forget set holds all triggered images.
    Cost: one forward pass over the test images.
    References: Gu et al., BadNets, 2017, arXiv:1708.06733.
    """

    target = "low"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "backdoor success", "triggered", ""

    def measure(self, evidence: Evidence) -> Score:
        answers, _ = self.answers(evidence)
        return _rate(self, evidence, answers == self.label)


@metrics.register("triggered_accuracy")
@dataclass(frozen=True, kw_only=True)
class TriggeredAccuracy(Triggered):
    """Accuracy on triggered test images by their clean labels: whether the trigger is without effect.

    ``mean_i 1[argmax f(t(x_i)) = y_i]`` over test images of other classes than the backdoor's. Unlike
    ``backdoor_success`` it is not fooled by a model that answers at random. Interval: Clopper–Pearson.

    Ideal: the value of a model trained without any triggered image, near its test accuracy.
    Cost: one forward pass over the test images.
    References: Goel et al., Corrective Machine Unlearning, TMLR 2024, arXiv:2402.14015 (Acc_corr).
    """

    target = "high"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "accuracy", "triggered", "clean"

    def measure(self, evidence: Evidence) -> Score:
        answers, clean = self.answers(evidence)
        return _rate(self, evidence, answers == clean)


@metrics.register("backdoor_test")
@dataclass(frozen=True, kw_only=True)
class BackdoorTest(Triggered):
    """Verification by one's own backdoor: a few triggered queries and a binomial test.

    ``r`` of ``queries`` triggered images are given the label. H0, deleted: ``r ~ Bin(n, q)``; H1, kept:
    ``r ~ Bin(n, p)``. H0 is rejected from the smallest ``t`` with ``P(Bin(n, q) ≥ t) ≤ alpha`` on; a
    model that kept the data passes with probability ``β = P(Bin(n, p) < t)``. The value is ``r / n``
    with its Clopper–Pearson interval; the note has decision, p-value and ``β``. All models get the same
    queries.

    Args:
        queries: ``n``.
        alpha: level of the test.
        q: success where the data is deleted; without it the upper 97.5 % bound of the retrained models',
            so that the level holds. State it where these were trained on unknown triggered images.
        p: success where the data is kept; without it the lower bound of the original's.

    Ideal: H0 is not rejected and ``β`` is small. A model that forgot still is rejected in a fraction
        ``alpha`` of all draws of queries.
    Cost: one forward pass over the test images, shared with ``backdoor_success``.
    References: Sommer et al., Athena: Probabilistic Verification of Machine Unlearning, PETS 2022,
        arXiv:2003.04247.
    """

    queries: int = 30
    alpha: float = 1e-3
    q: float | None = None
    p: float | None = None
    target = "low"

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ConfigError(f"must be at least 1, got {self.queries}.", "queries")
        for name in ("alpha", "q", "p"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"is a probability between 0 and 1, got {value}.", name)

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "backdoor test", "triggered", "binomial"

    def measure(self, evidence: Evidence) -> Score:
        hits = self._hits(evidence, evidence.subject)
        if len(hits) < self.queries:
            raise DataError(f"{self.queries} queries need as many triggered images; there are {len(hits)}.")
        order = torch.randperm(len(hits), generator=evidence.session.generator("backdoor_test"))
        asked = hits[order[: self.queries]]
        p, q = self._rates(evidence)
        found = deletion_test(int(asked.sum()), self.queries, p, q, self.alpha)
        note = (
            f"{int(asked.sum())} of {self.queries} queries: that the data was deleted is "
            f"{'rejected' if found.rejected else 'not rejected'} (p-value {found.p_value:.2g}, level "
            f"{self.alpha:g}, from {found.threshold} on); a model that kept it passes with probability "
            f"{found.beta:.2g} (success {q:.2g} if deleted, {p:.2g} if kept)"
        )
        return _rate(self, evidence, asked, note)

    def _hits(self, evidence: Evidence, subject: Subject) -> Tensor:
        hits = evidence.of(subject).score(BackdoorSuccess(label=self.label, patch=self.patch)).per_example
        assert hits is not None
        return hits == 1

    def _rates(self, evidence: Evidence) -> tuple[float, float]:
        p, q = self.p, self.q
        if p is None:
            kept = self._hits(evidence, evidence.original)
            p = statistics.rate(int(kept.sum()), len(kept))[0]
        if q is None:
            deleted = torch.cat([self._hits(evidence, other) for other in evidence.references()])
            q = statistics.rate(int(deleted.sum()), len(deleted))[1]
        if p <= q:
            raise DataError(
                f"the test has no power: the trigger succeeds in {p:.1%} where the data is kept and in "
                f"{q:.1%} where it is deleted. Plant a stronger trigger, or state p and q."
            )
        return p, q


@dataclass(frozen=True)
class Deletion:
    """Outcome of ``deletion_test``: rejected from ``threshold`` successes on, type II error ``beta``."""

    rejected: bool
    p_value: float
    threshold: int
    beta: float


def deletion_test(successes: int, n: int, p: float, q: float, alpha: float = 1e-3) -> Deletion:
    """Tests whether triggered data was deleted, by ``successes`` of ``n`` triggered queries.

    H0 ``Bin(n, q)`` against H1 ``Bin(n, p)``, ``p > q``; the p-value is ``P(Bin(n, q) ≥ successes)``.
    The threshold is ``n + 1``, and ``beta`` 1, where not even ``n`` successes would be significant.
    """
    from scipy.stats import binom

    tails = binom.sf(np.arange(n + 2) - 1, n, q)  # P(Bin(n, q) ≥ t) for t = 0..n + 1; the last is 0
    threshold = int(np.argmax(tails <= alpha))
    beta = float(binom.cdf(threshold - 1, n, p))
    return Deletion(successes >= threshold, float(tails[successes]), threshold, beta)


def _rate(
    metric: Metric, evidence: Evidence, hits: Tensor, note: str | None = None, paired: bool = True
) -> Score:
    """The score of a fraction: ``hits`` is one boolean for each example."""
    name, part, variant = metric.labels(evidence)
    return Score(
        name=name,
        part=part,
        variant=variant,
        value=float(hits.double().mean()),
        interval=statistics.rate(int(hits.sum()), len(hits)),
        n=len(hits),
        target=metric.target,
        unit="fraction",
        details={"note": note} if note else {},
        per_example=hits.double() if paired else None,
    )


def _answers(evidence: Evidence, part: str) -> Tensor:
    """The class that the subject gives each example of a part, ``(N,)``."""
    _classifier(evidence)
    return evidence.subject.read(part).outputs.argmax(-1)


def _classifier(evidence: Evidence) -> None:
    if not isinstance(evidence.task, Classification):
        raise Unsupported(
            f"labels are corrected for classifiers; the task is {type(evidence.task).__name__}."
        )


def _column(evidence: Evidence, part: str, name: str) -> Tensor:
    """A column of a part.

    Raises:
        MissingEvidence: the split has no such part, or the part no such column.
    """
    if part not in evidence.parts:
        raise MissingEvidence(f"there is no {part} data. Give the split {part}=….")
    try:
        return evidence.parts[part].column(name)
    except DataError:
        raise MissingEvidence(
            f"the {part} data has no column '{name}'. The data set 'poisoned' provides it; or add it."
        ) from None
