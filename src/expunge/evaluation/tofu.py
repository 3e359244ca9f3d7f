"""TOFU's numbers: probability, three truth ratios, forget quality and model utility.

Every function takes arrays, whoever computed them. ``N`` is the number of questions, ``W`` of wrong answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from expunge.errors import DataError
from expunge.evaluation import comparisons, statistics
from expunge.evaluation.comparisons import Contrast
from expunge.evaluation.statistics import Floats
from expunge.evaluation.verdict import ALPHA, Kind

Definition = Literal["corrected", "conformance"]
Ratio = Literal["arithmetic", "geometric"]

MARGIN = 0.02
"""Differences of mean log truth ratios below it are negligible: about five times that of two retrainings."""

EPSILON = 1e-10
"""What open-unlearning adds to denominators (``conformance``)."""


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-likelihoods of answers: the sum over an answer's tokens, and how many they are.

    Args:
        total: ``Σ_t log p_t`` in nats, ``(N,)`` or ``(N, W)``.
        tokens: labels behind each sum, the end of text among them, of the same shape.

    Raises:
        DataError: shapes that differ, an answer without tokens, or a sum that is not finite.
    """

    total: Floats
    tokens: Floats

    def __post_init__(self) -> None:
        total, tokens = (np.asarray(x, dtype=np.float64) for x in (self.total, self.tokens))
        if total.shape != tokens.shape or total.ndim not in (1, 2) or not total.size:
            raise DataError(
                f"log-likelihoods and numbers of tokens are both (questions,) or (questions, answers), got "
                f"shapes {total.shape} and {tokens.shape}."
            )
        if not bool((tokens >= 1).all()):
            raise DataError("an answer has no tokens, so it has no mean log-likelihood. Leave it out.")
        if not bool(np.isfinite(total).all()):
            raise DataError("a log-likelihood is NaN or infinite. Compute it in float32 or better.")
        object.__setattr__(self, "total", total)
        object.__setattr__(self, "tokens", tokens)

    @property
    def mean(self) -> Floats:
        """``(1/|A|) Σ_t log p_t``: of the length-normalised probability."""
        return self.total / self.tokens


def probability(answer: Likelihood) -> Floats:
    """``p(a|q)^(1/|a|)``, the length-normalised probability of each answer, in [0, 1]. ``(N,)``.

    Ideal: on the forget set the retrained model's value (0.15 for Llama-2-7B), not 0; elsewhere high.
    """
    return np.exp(answer.mean)


def option_probability(answer: Likelihood, wrong: Likelihood, definition: Definition = "corrected") -> Floats:
    """The right answer's share among all: ``p / (p + Σ_w p_w)`` of length-normalised ``p``. ``(N,)``.

    ``conformance`` adds 1e-10 to the denominator, so that a model for which all answers are unlikely scores
    0 and not the share. With ``W`` wrong answers chance is ``1/(W + 1)``.
    """
    right, others = _pair(answer, wrong)
    if definition == "conformance":
        return np.asarray(np.exp(right) / (np.exp(right) + np.exp(others).sum(1) + EPSILON), np.float64)
    return np.asarray(1 / (1 + np.exp(np.minimum(_log_sum(others) - right, 700.0))), np.float64)


def log_truth_ratio(answer: Likelihood, wrong: Likelihood, kind: Ratio = "geometric") -> Floats:
    """How much likelier wrong answers are than the paraphrased right one, as a logarithm. ``(N,)``.

    ``arithmetic`` (the paper): ``log ((1/W) Σ_w p_w) − log p``; ``geometric`` (both code bases):
    ``(1/W) Σ_w log p_w − log p``; of length-normalised ``p``. Finite for any model.

    Args:
        answer: of the paraphrased answer (TOFU's forget and retain sets), or of the answer itself (real
            authors, world facts), ``(N,)``.
        wrong: of the perturbed answers, ``(N, W)``.
    """
    right, others = _pair(answer, wrong)
    if kind == "geometric":
        return np.asarray(others.mean(1) - right, np.float64)
    return _log_sum(others) - math.log(others.shape[1]) - right


def truth_ratio(
    answer: Likelihood, wrong: Likelihood, kind: Ratio = "geometric", definition: Definition = "corrected"
) -> Floats:
    """Wrong over right: ``exp(log_truth_ratio)``. ``(N,)``, at least 0.

    ``conformance`` is open-unlearning's ``exp(mean log p_w) / (p + 1e-10)`` (geometric only; the code with
    the arithmetic mean adds nothing). It is near 0 for every model with ``p`` far below 1e-10, whatever it
    thinks of the wrong answers: part of why collapsed models there have a forget quality of 1e-239.

    Ideal: the retrained model's values, not 1.
    """
    if definition == "conformance" and kind == "geometric":
        right, others = _pair(answer, wrong)
        return np.asarray(np.exp(others.mean(1)) / (np.exp(right) + EPSILON), np.float64)
    return np.exp(np.minimum(log_truth_ratio(answer, wrong, kind), 700.0))


def extent_of_knowledge(
    answer: Likelihood, wrong: Likelihood, definition: Definition = "corrected"
) -> Floats:
    """The third truth ratio: ``p / (p + p_wrong)`` with ``p_wrong = exp(mean log p_w)``. ``(N,)``, in [0, 1].

    ``1/(1 + TR)`` of the geometric ratio; ``conformance`` adds 1e-10 to the denominator.
    """
    right, others = _pair(answer, wrong)
    if definition == "conformance":
        known = np.exp(right)
        return np.asarray(known / (known + np.exp(others.mean(1)) + EPSILON), np.float64)
    return np.asarray(1 / (1 + np.exp(np.minimum(others.mean(1) - right, 700.0))), np.float64)


def closeness(ratio: Floats, definition: Definition = "corrected") -> Floats:
    """``min(TR, 1/TR)``, what TOFU averages on the forget set: 1 where both are equally likely. ``(N,)``.

    ``conformance``: ``min(TR, 1/(TR + 1e-10))``.
    """
    added = EPSILON if definition == "conformance" else np.finfo(np.float64).tiny
    return np.minimum(ratio, 1 / (ratio + added))


def truthfulness(ratio: Floats) -> Floats:
    """``max(0, 1 − TR)``, what TOFU averages on other sets: 1 where only the truth is likely. ``(N,)``."""
    return np.maximum(0.0, 1 - ratio)


def _pair(answer: Likelihood, wrong: Likelihood) -> tuple[Floats, Floats]:
    right, others = answer.mean, wrong.mean
    if right.ndim != 1 or others.ndim != 2 or len(right) != len(others):
        raise DataError(
            f"right answers are (questions,) and wrong ones (questions, answers), got shapes {right.shape} "
            f"and {others.shape}."
        )
    return right, others


def _log_sum(logs: Floats) -> Floats:
    top = logs.max(1)
    return np.asarray(top + np.log(np.exp(logs - top[:, None]).sum(1)), np.float64)


@dataclass(frozen=True, kw_only=True)
class ForgetQuality:
    """TOFU's forget quality and what it takes to read it.

    Args:
        statistic: the largest distance ``D`` between the two distribution functions.
        p: of the Kolmogorov–Smirnov test, the published value.
        n: questions. Values of different ``n`` do not compare.
        critical: the smallest ``D`` with a p-value below 0.05.
        smallest: ``log₁₀`` of the p-value of total separation, which no model can go below.
    """

    statistic: float
    p: float
    n: int
    critical: float
    smallest: float


def forget_quality(subject: ArrayLike, retrained: ArrayLike) -> ForgetQuality:
    """Two-sample Kolmogorov–Smirnov test of the truth ratios of a model and of a retrained one.

    The ratios or their logarithms: a monotone map changes nothing. The test takes the samples for
    independent although both models answered the same questions, and its p-value is first of all one of
    ``n``: for comparison with tables only. ``paired`` says what it should have said.

    Shapes: both ``(N,)``, of the same questions.
    Raises:
        DataError: not two samples of one length, fewer than two, or NaN.
    Ideal: 1 for the retrained model itself; two honest retrainings get anything above about 0.7.
    References: Maini et al., TOFU, COLM 2024, arXiv:2401.06121.
    """
    from scipy.stats import ks_2samp

    first, second = (np.asarray(x, dtype=np.float64) for x in (subject, retrained))
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise DataError(
            f"forget quality needs the ratios of two models on the same questions, at least two; got shapes "
            f"{first.shape} and {second.shape}."
        )
    if bool(np.isnan(first).any() or np.isnan(second).any()):
        raise DataError("some truth ratios are NaN. Compute them in float32 or better.")
    found = ks_2samp(first, second)
    n = len(first)
    smallest = math.log10(2) - _log10(math.comb(2 * n, n))
    return ForgetQuality(
        statistic=float(found.statistic), p=float(found.pvalue), n=n, critical=critical(n), smallest=smallest
    )


def critical(n: int, level: float = ALPHA) -> float:
    """The smallest ``D`` of two samples of ``n`` values with a p-value below ``level``; inf for none.

    ``P(D ≥ k/n) = 2 Σ_{j≥1} (−1)^{j−1} C(2n, n − jk) / C(2n, n)``, exactly.

    References: Gnedenko and Korolyuk, Doklady Akademii Nauk 80, 1951.
    """
    whole = math.comb(2 * n, n)
    for k in range(max(1, int(math.sqrt(n))), n + 1):
        terms = ((-1) ** (j - 1) * math.comb(2 * n, n - j * k) for j in range(1, n // k + 1))
        if 2 * sum(terms) / whole < level:
            return k / n
    return math.inf


def _log10(value: int) -> float:
    bits = max(0, value.bit_length() - 1000)
    return math.log10(value >> bits) + bits * math.log10(2)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """What the same questions say of two models.

    Args:
        contrast: the mean difference of log truth ratios with its interval, p-value and effect size.
        p_equivalent: of "the difference is at least the margin" (two one-sided tests).
        margin: in nats.
        kind: ``equivalent`` or ``different`` at 5 %, else ``inconclusive``. A difference that is there but
            inside the margin is equivalent.
        wasserstein: how far one distribution has to be moved to become the other, in nats. A model that
            swaps its answers between questions differs in neither mean nor this.
        moved: the mean size of the change of a question, ``mean |Δ|``, which does see a swap.
    """

    contrast: Contrast
    p_equivalent: float
    margin: float
    kind: Kind
    wasserstein: float
    moved: float


def paired(
    subject: ArrayLike,
    retrained: ArrayLike,
    clusters: ArrayLike | Tensor | None = None,
    margin: float = MARGIN,
) -> Paired:
    """Do two models think alike of the same questions? Test and equivalence test of log truth ratios.

    ``Δ_i = log TR_i(subject) − log TR_i(retrained)``; t test of ``mean Δ`` with whole data subjects as the
    unit where ``clusters`` are given, and two one-sided tests of ``|mean Δ| < margin``. It speaks of these
    models: that another retraining would differ too is the table's part, from several of them.

    Args:
        subject, retrained: log truth ratios, ``(N,)``; the retrained ones also ``(K, N)``, which are
            averaged over the ``K`` models.
        clusters: the data subject of each question, ``(N,)``.

    Raises:
        DataError: shapes that differ, NaN, or fewer than two questions or subjects.
    Ideal: equivalent. Two published retrainings differ by 0.004 and full from retain90 by 0.5.
    References: Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987.
    """
    mine, theirs = (np.asarray(x, dtype=np.float64) for x in (subject, retrained))
    theirs = theirs.mean(0) if theirs.ndim == 2 else theirs
    if not bool(np.isfinite(mine).all() and np.isfinite(theirs).all()):
        raise DataError("some log truth ratios are NaN or infinite. Compute them in float32 or better.")
    contrast = comparisons.paired_t(mine, theirs, clusters)
    error = statistics.standard_error(mine - theirs, clusters)
    df = len(mine) - 1.0 if clusters is None else statistics.degrees_of_freedom(clusters)
    p = comparisons.equivalence(contrast.difference, error, df, margin)
    kind: Kind = "equivalent" if p < ALPHA else "different" if contrast.p < ALPHA else "inconclusive"
    return Paired(
        contrast=contrast,
        p_equivalent=p,
        margin=margin,
        kind=kind,
        wasserstein=comparisons.wasserstein(mine, theirs),
        moved=float(np.abs(mine - theirs).mean()),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Ability:
    """What a model can do on one of the three sets that must stay, each in [0, 1] and ``(N,)``.

    Args:
        probability: of the answer; its share among the options for real authors and world facts.
        rouge: ROUGE-L recall.
        truth: ``truthfulness``.
        clusters: the data subject of each question, for the interval.
    """

    probability: Floats
    rouge: Floats
    truth: Floats
    clusters: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelUtility:
    """TOFU's model utility and what it is made of.

    Args:
        value, interval: the harmonic mean and its 95 % interval over questions (or subjects).
        parts: the means that went in, ``real_authors.truth`` and so on.
        weakest: the smallest of them, which pulls the harmonic mean down most.
    """

    value: float
    interval: tuple[float, float] | None
    parts: Mapping[str, float]
    weakest: str


def model_utility(sets: Mapping[str, Ability]) -> ModelUtility:
    """TOFU's model utility: the harmonic mean of nine means, three for each of three sets.

    ``U = 9 / Σ 1/m_i``; 0 as soon as one of them is 0, so look at ``weakest`` before calling a model useless.
    It is about 0.6 for a perfect model, since the shares and truth ratios of real authors and world facts
    are. Interval by the delta method: each question moves ``U`` by ``Σ_i U² (x_i − m_i) / 9 m_i²`` over the
    measures ``i`` of its set; three measures of one question are dependent, sets are not. None for ``U = 0``.

    Raises:
        DataError: no sets, or a value that is negative or NaN.
    Ideal: the retrained model's value; differences below 0.03 are within one model's sampling noise.
    References: Maini et al., TOFU, COLM 2024, arXiv:2401.06121.
    """
    measures = {
        name: {"probability": ability.probability, "rouge": ability.rouge, "truth": ability.truth}
        for name, ability in sets.items()
    }
    parts = {f"{s}.{m}": float(np.mean(x)) for s, found in measures.items() for m, x in found.items()}
    if not parts or not all(value >= 0 for value in parts.values()):
        raise DataError(f"model utility is a harmonic mean of numbers of at least 0, got {parts}.")
    weakest = min(parts, key=lambda name: parts[name])
    if parts[weakest] == 0:
        return ModelUtility(value=0.0, interval=None, parts=parts, weakest=weakest)
    value = len(parts) / sum(1 / part for part in parts.values())
    errors = []
    for name, found in measures.items():
        slopes = {m: value**2 / (len(parts) * parts[f"{name}.{m}"] ** 2) for m in found}
        influence = np.sum([slopes[m] * (x - x.mean()) for m, x in found.items()], axis=0)
        groups = sets[name].clusters
        df = len(influence) - 1.0 if groups is None else statistics.degrees_of_freedom(groups)
        errors.append((statistics.standard_error(influence, groups) ** 2, df))
    return ModelUtility(value=value, interval=_around(value, errors), parts=parts, weakest=weakest)


def _around(value: float, errors: list[tuple[float, float]]) -> tuple[float, float] | None:
    from scipy.special import stdtrit

    error = math.sqrt(sum(variance for variance, _ in errors))
    if not math.isfinite(error):
        return None
    half = float(stdtrit(comparisons.pooled_df(*errors), (1 + statistics.LEVEL) / 2)) * error
    return value - half, value + half
