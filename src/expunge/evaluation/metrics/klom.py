"""Are the margins of unlearned models distributed as those of retrained ones, example by example?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.errors import ConfigError, DataError, MissingEvidence
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.distance import needs_classes
from expunge.evaluation.score import Score
from expunge.evaluation.subject import Subject

Floats = NDArray[np.float64]
Definition = Literal["corrected", "conformance"]
Statistic = Literal["mean", "p95"]

CLIP = 100.0
"""Margins are clipped to this size."""

FLOOR = 1e-5
"""The smallest probability of a bin in the denominator; ``−ln`` of it, 11.51, is the largest KLoM."""

LEAST = 2
"""Models needed on either side."""

FEW = 50
"""With fewer models on either side the value is mostly bias and noise."""


@metrics.register("klom")
@dataclass(frozen=True, kw_only=True)
class KLoM(Metric):
    """KL divergence of margins: whether a method's models treat each example as retrained models do.

    Of each example, the margins ``f_y − log Σ_{k≠y} exp f_k`` of ``N`` models unlearned by the same method
    and of ``M`` retrained ones, clipped to ±100, are counted in ``bins`` equal bins over their joint range.
    With the frequencies ``p`` of the unlearned and ``q`` of the retrained models it is ``KL(p ‖ q)``, ``q``
    at least 1e-5 where ``p > 0``. The value is the mean or the 95th percentile over examples; in
    ``[0, 11.51]``. It judges the method, of which the model of the row is one run. Classification only.
    Interval: bootstrap over examples (mean), order statistics (95th percentile).

    A retrained model's row compares half of the retrained models with the other half. Set ``models`` to
    compare rows: values that rest on different numbers of models have different biases.

    Ideal: what a perfect unlearner scores with as many models, which is ``perfect`` (by simulation from equal
        normal distributions) and far above 0 for few models; ``details["retrained"]`` has the value of one
        half of the retrained models against the other.
    Cost: ``N`` unlearned and ``M`` retrained models, each read once.
    Differs: the published code loses the largest margin of each example, which falls beyond the last bin, and
        is called with its arguments exchanged, ``KL(retrained ‖ unlearned)``. ``definition: conformance``
        does both.
    References: Georgiev et al., Attribute-to-Delete, ICLR 2025, arXiv:2410.23232; code
        data-unlearning-bench.
    """

    part: Literal["forget", "retain", "test"] = "forget"
    statistic: Statistic = "mean"
    bins: int = 20
    models: int | None = None
    definition: Definition = "corrected"
    unit = "nats"

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ConfigError(f"must be at least 2, got {self.bins}.", "bins")
        if self.models is not None and self.models < LEAST:
            raise ConfigError(f"must be at least {LEAST}, got {self.models}.", "models")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        binned = "" if self.bins == 20 else f"-{self.bins}-bins"
        few = "" if self.models is None else f"-{self.models}-models"
        ending = "-conformance" if self.definition == "conformance" else ""
        return "KLoM", self.part, f"{self.statistic}{binned}{few}{ending}"

    def measure(self, evidence: Evidence) -> Score:
        needs_classes("KLoM", evidence)
        advice = f"with fewer than {FEW} it is mostly noise"
        unlearned, retrained = ensembles(evidence, self.models, LEAST, advice)
        mine, theirs = margins(unlearned, self.part), margins(retrained, self.part)
        values = klom(mine, theirs, bins=self.bins, definition=self.definition)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=_statistic(values, self.statistic),
            interval=self._interval(values, evidence),
            n=len(values),
            target="retrained",
            unit="nats",
            perfect=self._perfect(len(mine), len(theirs), len(values)),
            details=self._details(mine, theirs, evidence),
            per_example=torch.from_numpy(values) if self.statistic == "mean" else None,
        )

    def _interval(self, values: Floats, evidence: Evidence) -> tuple[float, float] | None:
        if self.statistic == "mean":
            return statistics.mean(values, clusters=evidence.clusters(self.part))
        return _quantile_interval(values)

    def _perfect(self, unlearned: int, retrained: int, examples: int) -> float:
        return perfect(
            unlearned,
            retrained,
            examples,
            bins=self.bins,
            statistic=self.statistic,
            definition=self.definition,
        )

    def _details(self, mine: Floats, theirs: Floats, evidence: Evidence) -> dict[str, Any]:
        found: dict[str, Any] = {"models": {"unlearned": len(mine), "retrained": len(theirs)}}
        others = evidence.retrained
        half = len(others) // 2
        if half >= LEAST and evidence.subject not in others:
            first, second = (margins(group, self.part) for group in (others[:half], others[half:]))
            against = klom(first, second, bins=self.bins, definition=self.definition)
            found["retrained"] = {
                "value": _statistic(against, self.statistic),
                "perfect": self._perfect(len(first), len(second), len(against)),
                "models": [len(first), len(second)],
            }
        if min(len(mine), len(theirs)) < FEW:
            found["note"] = (
                f"{len(mine)} unlearned against {len(theirs)} retrained models: below {FEW} of each, KLoM is "
                f"mostly noise; a perfect unlearner scores "
                f"{self._perfect(len(mine), len(theirs), mine.shape[1]):.2f} here."
            )
        return found


def klom(
    unlearned: Floats,
    retrained: Floats,
    *,
    bins: int = 20,
    definition: Definition = "corrected",
) -> Floats:
    """The KL divergence of each example's margins, ``(n,)`` in nats.

    Args:
        unlearned: margins under each unlearned model, ``(N, n)``.
        retrained: margins under each retrained model, ``(M, n)``.
        bins: equal bins over the joint range of an example's margins.
        definition: ``conformance`` drops each example's largest margin and exchanges the arguments.

    Raises:
        DataError: the shapes do not fit, a margin is NaN, or ``conformance`` leaves one side no margin.
    """
    if unlearned.ndim != 2 or retrained.ndim != 2 or unlearned.shape[1] != retrained.shape[1]:
        raise DataError(
            f"KLoM needs margins of shape (models, examples) of the same examples, got {unlearned.shape} and "
            f"{retrained.shape}."
        )
    if np.isnan(unlearned).any() or np.isnan(retrained).any():
        raise DataError("some margins are NaN. Train those models again, with a lower learning rate.")
    mine, theirs = np.clip(unlearned, -CLIP, CLIP), np.clip(retrained, -CLIP, CLIP)
    low = np.minimum(mine.min(0), theirs.min(0))
    high = np.maximum(mine.max(0), theirs.max(0))
    high = np.where(high > low, high, low + 1)
    keep = definition == "corrected"
    p, q = (_frequencies(x, low, high, bins, keep) for x in (mine, theirs))
    if not keep:
        p, q = q, p
        lost = (p.sum(1) == 0) | (q.sum(1) == 0)
        if lost.any():
            raise DataError(
                f"the published KLoM is not defined for {int(lost.sum())} of {len(lost)} examples: all "
                "margins of one side are the largest, which it drops. Use definition: corrected."
            )
    q = np.where(p > 0, np.maximum(q, FLOOR), q)
    q = q / q.sum(1, keepdims=True)
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log(ratio)).sum(1), dtype=np.float64)


def _frequencies(margins: Floats, low: Floats, high: Floats, bins: int, keep: bool) -> Floats:
    """The share of each example's margins ``(N, n)`` in each bin, ``(n, bins)``; ``keep`` the maximum."""
    n = margins.shape[1]
    index = np.floor((margins - low) * bins / (high - low)).astype(np.int64)
    if keep:
        index = np.minimum(index, bins - 1)  # else it stands in a bin of its own, which is cut off
    places = (index + np.arange(n) * (bins + 1)).ravel()
    counts = np.bincount(places, minlength=n * (bins + 1)).reshape(n, bins + 1)[:, :bins]
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1), dtype=np.float64)


def perfect(
    unlearned: int,
    retrained: int,
    examples: int,
    *,
    bins: int = 20,
    statistic: Statistic = "mean",
    definition: Definition = "corrected",
) -> float:
    """What a perfect unlearner scores on average: both sides drawn from one normal distribution.

    Seeded and cached; the standard error is about 1 % for 100 models.
    """
    values = _null(unlearned, retrained, bins, definition)
    if statistic == "mean":
        return float(values.mean())
    groups = max(1, len(values) // examples)
    return float(np.mean([_statistic(group, "p95") for group in np.array_split(values, groups)]))


@lru_cache(maxsize=64)
def _null(unlearned: int, retrained: int, bins: int, definition: Definition) -> Floats:
    generator = np.random.default_rng(0)
    n = int(np.clip(2_000_000 // max(unlearned, retrained), 200, 4000))
    mine, theirs = (generator.standard_normal((models, n)) for models in (unlearned, retrained))
    return klom(mine, theirs, bins=bins, definition=definition)


def _statistic(values: Floats, statistic: Statistic) -> float:
    return float(values.mean() if statistic == "mean" else np.quantile(values, 0.95))


def _quantile_interval(values: Floats) -> tuple[float, float] | None:
    """Between the order statistics whose ranks are the binomial quantiles; None for fewer than two values."""
    from scipy.special import bdtrik

    n = len(values)
    if n < 2:
        return None
    tail = (1 - statistics.LEVEL) / 2
    low, high = (int(np.ceil(bdtrik(level, n, 0.95))) for level in (tail, 1 - tail))
    ordered = np.sort(values)
    return float(ordered[max(low - 1, 0)]), float(ordered[min(high, n - 1)])


def ensembles(
    evidence: Evidence, models: int | None, least: int, advice: str
) -> tuple[tuple[Subject, ...], tuple[Subject, ...]]:
    """The models made as the subject was, itself first, and the retrained ones to compare them with.

    Of a retrained subject these are two halves of the retrained models, the first beginning with it.

    Args:
        evidence: the subject's.
        models: take so many on either side; None for all there are.
        least: fewer on either side than this are refused.
        advice: how many make sense, in words.

    Raises:
        MissingEvidence: there are too few.
    """
    subject, others = evidence.subject, evidence.retrained
    if subject in others:
        start, half = others.index(subject), len(others) // 2
        turned = others[start:] + others[:start]
        mine, theirs = turned[:half], turned[half:]
    else:
        mine, theirs = (subject, *evidence.siblings), others
    least = models or least
    if min(len(mine), len(theirs)) < least:
        have = (
            f"the {len(others)} retrained models make {len(mine)} and {len(theirs)}"
            if subject in others
            else f"there are {len(mine)} of '{subject.name}' and {len(theirs)} retrained"
        )
        raise MissingEvidence(
            "this compares many models made in the same way with retrained ones: it needs at least "
            f"{least} of each ({advice}); {have}. Give siblings and more retrained models."
        )
    return mine[:models], theirs[:models]


def margins(subjects: Sequence[Subject], part: str) -> Floats:
    """The margins of every example of a part under every model, ``(models, n)``."""
    return torch.stack([subject.read(part).margin for subject in subjects]).double().numpy()
