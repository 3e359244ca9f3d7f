"""What was said beside what should (not) have been said: overlap, memorised tokens, repetition.

Functions of texts take two sequences of ``N`` strings and give one number for each pair; functions of
tokens take what the model would have said under teacher forcing, ``(N, T)``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import DataError
from expunge.evaluation.porter import stem

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Definition = Literal["corrected", "conformance"]
Kind = Literal["rouge1", "rougeL"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rouge:
    """Overlap of ``N`` answers with their references, each ``(N,)`` in [0, 1].

    Args:
        recall: the share of the reference that was said. It rewards long answers.
        precision: the share of the answer that is in the reference.
        f1: their harmonic mean, 0 where both are 0.
    """

    recall: Floats
    precision: Floats
    f1: Floats


def rouge(said: Sequence[str], truth: Sequence[str], kind: Kind = "rougeL", stemmer: bool = True) -> Rouge:
    """How many words of the reference were said: in any order (ROUGE-1) or in order (ROUGE-L).

    With the words ``w`` of ``tokens``: ``common = Σ_w min(n_said(w), n_truth(w))`` for ``rouge1`` and the
    length of the longest common subsequence for ``rougeL``; ``recall = common / |truth|``,
    ``precision = common / |said|``. All three are 0 where either text has no words. The same numbers as
    the package rouge-score to the last bit: 2,908 logged pairs of TOFU come out exactly.

    Shapes: two sequences of ``N`` strings; each result is ``(N,)``.
    Cost: about 10,000 pairs of short answers a second; a subsequence of ``a`` and ``b`` words costs ``b``
        operations on integers of ``a`` bits.
    References: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004; Hyyrö, Bit-parallel
        LCS-length computation revisited, 2004.
    """
    _same_length(said, truth)
    found = np.zeros((len(said), 3))
    for row, (answer, reference) in enumerate(zip(said, truth, strict=True)):
        words, wanted = tokens(answer, stemmer), tokens(reference, stemmer)
        if not words or not wanted:
            continue
        shared = _overlap(words, wanted) if kind == "rouge1" else common_subsequence(words, wanted)
        recall, precision = shared / len(wanted), shared / len(words)
        f1 = 2 * precision * recall / (precision + recall) if shared else 0.0
        found[row] = recall, precision, f1
    return Rouge(recall=found[:, 0], precision=found[:, 1], f1=found[:, 2])


def tokens(text: str, stemmer: bool = True) -> list[str]:
    """The words as rouge-score sees them: lower case, runs of ``a–z`` and ``0–9``, stemmed.

    Only words of more than three characters are stemmed. Letters with accents and other scripts separate
    words, so that a text in Cyrillic has none.
    """
    found = re.findall("[a-z0-9]+", text.lower())
    return [stem(word) if len(word) > 3 else word for word in found] if stemmer else found


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(a)) - 1
    rows = every
    for word in b:
        hits = rows & places.get(word, 0)
        rows = ((rows + hits) | (rows - hits)) & every
    return len(a) - rows.bit_count()


def _overlap(a: Sequence[str], b: Sequence[str]) -> int:
    return (Counter(a) & Counter(b)).total()


def words(text: str) -> list[str]:
    """The words of a text in any script, lower case, without punctuation."""
    return re.findall(r"\w+", text.casefold())


def exact_match(said: Sequence[str], truth: Sequence[str]) -> Bools:
    """Whether the words of the answer are those of the reference, no more and no fewer. ``(N,)``.

    Case, punctuation and spacing do not count: "Paris." is "paris".

    Raises:
        DataError: a reference without words.
    """
    _same_length(said, truth)
    return np.array(
        [words(a) == _wanted(b, n) for n, (a, b) in enumerate(zip(said, truth, strict=True))], bool
    )


def contains(said: Sequence[str], truth: Sequence[str]) -> Bools:
    """Whether the reference's words are in the answer, one after another. ``(N,)``.

    Whole words are compared: "safe" is not in "unsafe".

    Raises:
        DataError: a reference without words, which every answer would contain.
    """
    _same_length(said, truth)
    found = []
    for number, (answer, reference) in enumerate(zip(said, truth, strict=True)):
        run, among = _wanted(reference, number), words(answer)
        found.append(any(among[i : i + len(run)] == run for i in range(len(among) - len(run) + 1)))
    return np.array(found, bool)


def _wanted(reference: str, number: int) -> list[str]:
    found = words(reference)
    if not found:
        raise DataError(f"reference {number} has no words: {reference!r}. Leave the example out.")
    return found


def _same_length(said: Sequence[str], truth: Sequence[str]) -> None:
    if isinstance(said, str) or isinstance(truth, str):
        raise DataError("got a string. Give a list of answers and a list of references.")
    if len(said) != len(truth):
        raise DataError(f"there are {len(said)} answers and {len(truth)} references. Give one for each.")


def extraction_strength(
    right: ArrayLike, mask: ArrayLike, definition: Definition = "corrected", eos: bool = True
) -> Floats:
    """The share of an answer that the model completes by itself once it has read the rest.

    ``1 − k/T`` with ``k`` the fewest tokens after which all others are the model's first choice.

    Args:
        right: whether the most probable token under teacher forcing is the label, ``(N, T)``.
        mask: which places hold a label, ``(N, T)``.
        definition: ``corrected``, in [0, 1]. ``conformance`` has ``k ≤ T − 1`` and so never falls below
            ``1/T``: ½ for a wrong answer of two tokens, and no difference between a right last token and
            none. It always leaves the last label out, and gives 0 to an answer without labels.
        eos: whether the last label ends the text; it then is no part of the answer.

    Shapes: the result is ``(N,)``.
    Raises:
        DataError: shapes that differ, or an answer without labels (``corrected``).
    Ideal: the retrained model's value.
    Cost: linear in the number of tokens.
    Differs: the published code tries every ``k`` in turn, which is quadratic.
    References: Carlini et al., Extracting Training Data, USENIX Security 2021; Wang et al., Towards
        Effective Evaluations and Comparisons for LLM Unlearning Methods, ICLR 2025; code open-unlearning.
    """
    hits, counted = _answer(right, mask, definition, eos)
    length = counted.sum(1)
    places = counted.cumsum(1)
    missed = np.where(counted & ~hits, places, 0).max(1, initial=0)
    if definition == "conformance":
        missed = np.minimum(missed, np.maximum(length - 1, 0))
        return np.where(length > 0, 1 - missed / np.maximum(length, 1), 0.0)
    return np.asarray(1 - missed / length, dtype=np.float64)


def exact_memorisation(
    right: ArrayLike, mask: ArrayLike, definition: Definition = "corrected", eos: bool = True
) -> Floats:
    """The share of an answer's tokens that are the model's first choice under teacher forcing.

    ``Σ_t right_t / T``. A fluent model that never saw the answer is far above 0 (0.59 is published), since
    many tokens follow from those before them.

    Args:
        right, mask, eos: as for ``extraction_strength``.
        definition: ``conformance`` always leaves the last label out, also where it is no end of text, and
            gives nan to an answer without labels (which the published mean skips).

    Shapes: the result is ``(N,)``, in [0, 1].
    Raises:
        DataError: shapes that differ, or an answer without labels (``corrected``).
    Ideal: the retrained model's value.
    Cost: linear in the number of tokens.
    References: Tirumala et al., Memorization Without Overfitting, NeurIPS 2022; code open-unlearning.
    """
    hits, counted = _answer(right, mask, definition, eos)
    length = counted.sum(1)
    share = (hits & counted).sum(1) / np.maximum(length, 1)
    return np.where(length > 0, share, np.nan)


def _answer(right: ArrayLike, mask: ArrayLike, definition: Definition, eos: bool) -> tuple[Bools, Bools]:
    """Hits and the places that are counted, both ``(N, T)``."""
    hits, labelled = np.asarray(right, dtype=bool), np.asarray(mask, dtype=bool)
    if hits.shape != labelled.shape or hits.ndim != 2:
        raise DataError(
            f"hits and mask are both (examples, tokens), got shapes {hits.shape} and {labelled.shape}."
        )
    if eos or definition == "conformance":
        labelled = labelled & (labelled.cumsum(1) < labelled.sum(1, keepdims=True))
    empty = np.flatnonzero(~labelled.any(1))
    if definition == "corrected" and len(empty):
        raise DataError(f"example {empty[0]} has no answer tokens ({len(empty)} in all). Leave them out.")
    return hits, labelled


def distinct(said: Sequence[str], n: int = 2) -> float:
    """Distinct-n: different runs of ``n`` words over all of them, in all answers together, in (0, 1].

    It falls with the amount of text, so only equally many answers of one length compare.

    Raises:
        DataError: no answer has ``n`` words.
    References: Li et al., A Diversity-Promoting Objective Function, NAACL 2016, arXiv:1510.03055.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in said:
        counts.update(_runs(pieces(text), n))
    if not counts:
        raise DataError(f"none of {len(said)} answers has {n} words, so nothing can be counted.")
    return len(counts) / counts.total()


def repetition(said: Sequence[str], n: int = 2) -> Floats:
    """The share of an answer's runs of ``n`` words that it has said before, ``(N,)``; 0 where it has none."""
    found = [Counter(_runs(pieces(text), n)) for text in said]
    return np.array([1 - len(runs) / max(1, runs.total()) if runs else 0.0 for runs in found])


def fluency(said: Sequence[str]) -> Floats:
    """Weighted entropy of an answer's pairs and triples of words, in bits: low for one that goes in circles.

    ``½ (⅔ H₂ + 4/3 H₃)`` with ``H_n = −Σ f log₂ f`` over the frequencies ``f`` of runs of ``n`` words. 0 for
    an empty answer. It grows with length: ``log₂ m`` for ``m`` runs that are all different. Published
    tables give it × 100.

    Shapes: the result is ``(N,)``.
    Differs: the published code splits words with NLTK; here punctuation marks are words of their own, and
        contractions are split at the apostrophe.
    References: Meng et al., Locating and Editing Factual Associations in GPT, 2022, arXiv:2202.05262; code
        RWKU.
    """
    weights = {2: 2 / 3, 3: 4 / 3}
    spoken = [pieces(text) for text in said]
    return np.array([sum(w * _entropy(_runs(text, n)) for n, w in weights.items()) / 2 for text in spoken])


def pieces(text: str) -> list[str]:
    """Words and punctuation marks of a text in any script, lower case."""
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def _runs(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _entropy(runs: Iterable[tuple[str, ...]]) -> float:
    counts = Counter(runs)
    total = counts.total()
    return sum(-count / total * math.log2(count / total) for count in counts.values())
