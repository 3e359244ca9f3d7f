"""Membership from tokens: six scores of a text, and whether members and non-members were alike to begin with.

Every score is ``(N,)``, one number for each text, and higher is a surer member. Log-probabilities of tokens
are ``(N, T)`` in nats with a mask of the places that count: of an answer its own tokens, of a document all
but the first.
"""

from __future__ import annotations

import zlib as compression
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from expunge.errors import DataError
from expunge.evaluation import statistics
from expunge.evaluation.statistics import Floats

Bools = NDArray[np.bool_]
Definition = Literal["corrected", "conformance"]

SPREAD = 1e-3
"""Standard deviations over the vocabulary count as at least so much (a variance of 1e-6)."""

FEWEST = 10
"""Texts (or subjects) of either side below which nothing can be said of a shift."""


def loss(log_probs: ArrayLike, mask: ArrayLike) -> Floats:
    """The mean log-probability of a text's tokens: members are likelier. ``(N,)``.

    References: Yeom et al., Privacy Risk in Machine Learning, CSF 2018, arXiv:1709.01604.
    """
    logs, counted = _tokens(log_probs, mask)
    return np.asarray(np.where(counted, logs, 0.0).sum(1) / counted.sum(1), np.float64)


def zlib(
    log_probs: ArrayLike, mask: ArrayLike, texts: Sequence[str], definition: Definition = "corrected"
) -> Floats:
    """The mean log-probability over the bytes of the compressed text: an easy text is no surprise. ``(N,)``.

    ``loss / (len(zlib(text)) − len(zlib("")))``; ``conformance`` keeps the 8 bytes that zlib adds to every
    text, which are most of a short answer's.

    Args:
        texts: what the counted tokens spell, ``N`` strings.

    Raises:
        DataError: an empty text, or not one for each row.
    References: Carlini et al., Extracting Training Data, USENIX Security 2021, arXiv:2012.07805.
    """
    values = loss(log_probs, mask)
    if len(texts) != len(values):
        raise DataError(f"there are {len(values)} texts by their tokens and {len(texts)} strings.")
    if not all(texts):
        raise DataError("a text is empty, so its compressed size says nothing. Leave it out.")
    added = len(compression.compress(b"")) if definition == "corrected" else 0
    sizes = [len(compression.compress(text.encode("utf-8"))) - added for text in texts]
    return np.asarray(values / np.array(sizes, dtype=np.float64), np.float64)


def min_k(log_probs: ArrayLike, mask: ArrayLike, k: float = 0.2) -> Floats:
    """Min-K %: the mean log-probability of the share ``k`` of tokens that are least likely. ``(N,)``.

    At least one token, else ``⌊k T⌋`` of them. The paper takes 0.2, MUSE and open-unlearning 0.4; values of
    different ``k`` do not compare.

    Differs: MUSE has no floor of one token, so that its score of a text of one or two tokens is NaN.
    References: Shi et al., Detecting Pretraining Data from Large Language Models, ICLR 2024,
        arXiv:2310.16789.
    """
    logs, counted = _tokens(log_probs, mask)
    return _lowest(logs, counted, k)


def min_k_plus_plus(
    log_probs: ArrayLike, mask: ArrayLike, mean: ArrayLike, std: ArrayLike, k: float = 0.2
) -> Floats:
    """Min-K %++: the same of ``(log p_t − μ_t)/σ_t``, how likely a token is among all that could stand there.

    Args:
        mean, std: ``μ = Σ_v p_v log p_v`` and ``σ² = Σ_v p_v (log p_v − μ)²`` at each place, ``(N, T)``;
            ``moments`` computes them. Spreads below 0.001 (a model that is sure) count as 0.001, as in
            open-unlearning; RWKU has no such floor and drops the texts that become NaN.

    Shapes: the result is ``(N,)``.
    Raises:
        DataError: shapes that differ, or spreads that are negative.
    References: Zhang et al., Min-K%++, ICLR 2025, arXiv:2404.02936.
    """
    logs, counted = _tokens(log_probs, mask)
    centre, spread = (np.asarray(x, dtype=np.float64) for x in (mean, std))
    if centre.shape != logs.shape or spread.shape != logs.shape:
        raise DataError(
            f"means and spreads are (texts, tokens) like the log-probabilities {logs.shape}, got "
            f"{centre.shape} and {spread.shape}."
        )
    if bool((~np.isfinite(centre) | ~(spread >= 0))[counted].any()):
        raise DataError("a mean is not finite, or a spread is negative or NaN. Compute them in float32.")
    return _lowest((logs - centre) / np.maximum(spread, SPREAD), counted, k)


def moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of ``log p_v`` under ``p`` itself, what Min-K %++ needs.

    Shapes: logits ``(…, V)``; both results ``(…)``, float32 or better.
    Cost: two copies of the logits: hand them over in pieces where the vocabulary is large.
    """
    logs = logits.double() if logits.dtype.itemsize > 4 else logits.float()
    logs = logs.log_softmax(-1)
    p = logs.exp()
    mean = (p * logs).sum(-1)
    spread = (p * (logs - mean[..., None]).square()).sum(-1).sqrt()
    return mean, spread


def reference(log_probs: ArrayLike, reference_log_probs: ArrayLike, mask: ArrayLike) -> Floats:
    """How much likelier a text is than to a model that never saw it: the difference of ``loss``. ``(N,)``.

    The log of the ratio of the two perplexities. An outside attacker has no retrained model; with one as the
    reference this is an upper bound, and 0 for the retrained model itself.

    Args:
        reference_log_probs: of the same tokens, by the other model, ``(N, T)``.

    References: Carlini et al., Extracting Training Data, USENIX Security 2021, arXiv:2012.07805.
    """
    return np.asarray(loss(log_probs, mask) - loss(reference_log_probs, mask), np.float64)


def gradient_norm(norms: ArrayLike, definition: Definition = "corrected") -> Floats:
    """Minus the norm of the gradient of a text's mean loss: members are flatter. ``(N,)``.

    ``−√(Σ_w ‖g_w‖²)`` over all weights; ``conformance`` is open-unlearning's ``−mean_w ‖g_w‖``, in which a
    bias of one number counts as much as an embedding.

    Args:
        norms: the Euclidean norm ``‖g_w‖`` for each parameter tensor, ``(N, P)``, without dropout.

    References: Wang et al., Pandora's White-Box, 2024, arXiv:2402.17012.
    """
    values = np.asarray(norms, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise DataError(f"gradient norms are (texts, parameter tensors), got shape {values.shape}.")
    if not bool((np.isfinite(values) & (values >= 0)).all()):
        raise DataError("a gradient norm is NaN, infinite or negative. Compute it in float32.")
    if definition == "conformance":
        return np.asarray(-values.mean(1), np.float64)
    return np.asarray(-np.linalg.norm(values, axis=1), np.float64)


def _tokens(log_probs: ArrayLike, mask: ArrayLike) -> tuple[Floats, Bools]:
    logs, counted = np.asarray(log_probs, dtype=np.float64), np.asarray(mask, dtype=bool)
    if logs.shape != counted.shape or logs.ndim != 2:
        raise DataError(
            f"log-probabilities and mask are both (texts, tokens), got shapes {logs.shape} and "
            f"{counted.shape}."
        )
    empty = np.flatnonzero(~counted.any(1))
    if len(empty):
        raise DataError(f"text {empty[0]} has no tokens that count ({len(empty)} in all). Leave them out.")
    if not bool(np.isfinite(logs[counted]).all()):
        raise DataError("a log-probability is NaN or infinite. Compute it in float32.")
    if bool((logs[counted] > 1e-6).any()):
        raise DataError("a log-probability is above 0. Give log-probabilities, not losses or logits.")
    return logs, counted


def _lowest(values: Floats, counted: Bools, k: float) -> Floats:
    """The mean of the lowest ``max(1, ⌊k T⌋)`` counted values of each row, ``(N,)``."""
    if not 0 < k <= 1:
        raise DataError(f"k is the share of a text's tokens, above 0 and at most 1, got {k}.")
    taken = np.maximum(1, (counted.sum(1) * k + 1e-9).astype(int))
    ordered = np.sort(np.where(counted, values, np.inf), axis=1)
    first = np.arange(values.shape[1]) < taken[:, None]
    return np.asarray(np.where(first, ordered, 0.0).sum(1) / taken, np.float64)


@dataclass(frozen=True, kw_only=True)
class Separated:
    """How well scores tell members from non-members.

    Args:
        auc, interval: area under the ROC curve; above ½ where members score higher.
        tpr: for each false positive rate asked for, the true positive rate and its interval.
    """

    auc: float
    interval: tuple[float, float] | None
    tpr: Mapping[float, tuple[float, tuple[float, float] | None]]


def separated(members: ArrayLike, others: ArrayLike, fprs: Sequence[float] = (0.01,)) -> Separated:
    """AUC and true positive rates at low false positive rates, with 95 % intervals.

    Shapes: scores of members ``(N,)`` and of non-members ``(M,)``; texts are the unit, so with several texts
    of one subject the intervals are too narrow.
    Raises:
        DataError: scores that are not finite, or too few non-members for a false positive rate: leave that
            rate out.
    Ideal: the retrained model's values; ½ only where both sides come from one distribution.
    """
    yes, no = (np.asarray(x, dtype=np.float64) for x in (members, others))
    if yes.ndim != 1 or no.ndim != 1 or not len(yes) or not len(no):
        raise DataError(f"scores are one number for each text, got shapes {yes.shape} and {no.shape}.")
    if not bool(np.isfinite(yes).all() and np.isfinite(no).all()):
        raise DataError("some membership scores are NaN or infinite.")
    value, interval = statistics.auc(yes, no)
    return Separated(auc=value, interval=interval, tpr={fpr: statistics.tpr_at(yes, no, fpr) for fpr in fprs})


def shift(
    members: Sequence[str],
    others: Sequence[str],
    clusters: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
) -> str | None:
    """A warning where members and non-members can be told apart without any model; None where they cannot.

    Two looks at the texts alone: their length in words, and a naive Bayes classifier of their words that is
    fitted on one half and judged on the other. If either has an AUC whose 95 % interval does not hold ½
    (for the classifier: lies above it), an attack's AUC says nothing of membership.
    With clusters all texts of a subject are in one half and count as one, by their mean: names that come
    back in every text of a person are no shift. No warning is no proof that there is none, and about one in
    twenty honest random splits is warned of.

    Args:
        clusters: the data subject of each member ``(N,)`` and of each non-member ``(M,)``.

    Raises:
        DataError: fewer than ten texts or subjects of either side.
    Cost: a second for a thousand texts.
    References: Das et al., Blind Baselines Beat Membership Inference Attacks, 2024, arXiv:2406.16201;
        Duan et al., Do Membership Inference Attacks Work on Large Language Models?, COLM 2024,
        arXiv:2402.07841.
    """
    texts = [*members, *others]
    side = np.repeat([1, 0], [len(members), len(others)])
    unit = np.arange(len(texts)) if clusters is None else _units(clusters, side)
    sides = np.zeros(unit.max() + 1, dtype=np.int64)
    sides[unit] = side
    for found, who in ((sides.sum(), "members"), ((1 - sides).sum(), "non-members")):
        if found < FEWEST:
            raise DataError(
                f"a shift can be looked for among at least {FEWEST} texts or subjects of either side; there "
                f"are {found} of the {who}."
            )
    judged = _half(sides, seed)
    lengths = np.array([len(text.split()) for text in texts], dtype=np.float64)
    words = _odds(texts, side, ~judged[unit])
    clues = []
    for name, scores, among, lowest in (
        ("their words", words, judged, 0.5),
        ("their lengths", lengths, np.full_like(judged, True), -np.inf),
    ):
        means = np.bincount(unit, weights=scores) / np.bincount(unit)
        value, interval = statistics.auc(means[among & (sides == 1)], means[among & (sides == 0)])
        assert interval is not None
        if value > lowest and not interval[0] <= 0.5 <= interval[1]:
            clues.append(f"{name} (AUC {value:.2f}, 95 % interval {interval[0]:.2f} to {interval[1]:.2f})")
    if not clues:
        return None
    return (
        f"Members and non-members differ before any model is asked, by {' and '.join(clues)}: an attack's "
        "AUC is no evidence of membership. Draw both from one set at random."
    )


def _units(clusters: tuple[ArrayLike, ArrayLike], side: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number from 0 for each subject, ``(N + M,)``; the same subject on both sides is two."""
    subjects = np.concatenate([np.asarray(x) for x in clusters])
    if len(subjects) != len(side):
        raise DataError(f"there are {len(side)} texts and {len(subjects)} subjects. Give one for each text.")
    both = np.unique(subjects, return_inverse=True)[1] * 2 + side
    return np.asarray(np.unique(both, return_inverse=True)[1], dtype=np.int64)


def _half(sides: NDArray[np.int64], seed: int) -> Bools:
    """A random half of the units of either side, ``(units,)``."""
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(sides), dtype=bool)
    for which in (0, 1):
        place = generator.permutation(np.flatnonzero(sides == which))
        chosen[place[: len(place) // 2]] = True
    return chosen


def _odds(texts: list[str], side: NDArray[np.int64], known: Bools) -> Floats:
    """The log odds of being a member, for each word of a text, learnt from the known ones. ``(N + M,)``."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    counts = CountVectorizer(token_pattern=r"\w+", binary=True).fit_transform(texts)
    machine = MultinomialNB(fit_prior=False).fit(counts[known], side[known])
    odds = machine.predict_joint_log_proba(counts)
    return np.asarray((odds[:, 1] - odds[:, 0]) / np.maximum(1, counts.getnnz(1)), np.float64)
