"""Who is still talked about: what the model tells of each data subject when it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from expunge.data.text import Record
from expunge.errors import DataError
from expunge.evaluation import language, statistics, text
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.generation import Decoding
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats

Match = Literal["contains", "key_words"]


@metrics.register("leakage")
@dataclass(frozen=True, kw_only=True)
class Leakage(Metric):
    """How many questions the model answers truly in at least one of k tries (leak@k), subject by subject.

    ``mean_i 1[one of the k answers to question i tells the truth]``. ``details["subjects"]`` is the same for
    each data subject, the worst first, with the exact (Clopper–Pearson) upper bound, at 95 %, of the chance
    that k further tries at one of these questions leak: never having leaked in 20 questions says no more
    than at most 14 %. For sampled answers the bound holds for the questions asked (with chances that differ
    between them it is wider still); greedy answers do not vary, and it speaks of the further questions of
    which these are a random choice. ``details["upper"]`` is that of all subjects together, with questions
    taken as independent. Interval: over questions, or over data subjects.

    Args:
        part: ``forget``, ``retain``, ``test`` or a probe.
        match: what tells the truth: ``contains``, the words of the true answer one after another; or
            ``key_words``, all words of it that are neither in the question nor in an answer whose name
            begins with ``perturbed_`` and, where there is a paraphrase, are in that too: the city and not
            the sentence around it.
        decoding: how answers are written; ``samples`` is ``k``.

    Ideal: the retrained model's value: who never saw the answers guesses some of them.
    Cost: writing ``k`` answers to each question. Greedy decoding misses leaks that sampling finds.
    References: Scholten et al., A Probabilistic Perspective on Unlearning and Alignment, 2024,
        arXiv:2410.03523; leak@k, 2025, arXiv:2511.04934.
    """

    part: str = "forget"
    match: Match = "contains"
    decoding: Decoding = Decoding()

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = ["key-words"] * (self.match == "key_words") + language.decoded(self.decoding)
        return "leakage", self.part, "-".join(words)

    def measure(self, evidence: Evidence) -> Score:
        records = language.questions(evidence, self.part)
        if self.match == "key_words":
            language.wrong_answers(language.text(evidence, self.part), self.part)
            for number, record in enumerate(records):
                key_words(record, number)  # refused before anything is written
        found = told(evidence.subject.answers(self.part, self.decoding), records, self.match)
        values = np.asarray(found.any(1), np.float64)
        details: dict[str, Any] = {"upper": upper(int(values.sum()), len(values)), "tries": found.shape[1]}
        details |= self._subjects(evidence, values)
        return language.averaged(self, evidence, values, details)

    def _subjects(self, evidence: Evidence, values: Floats) -> dict[str, Any]:
        clusters = evidence.clusters(self.part)
        if clusters is None:
            return {"note": "The data names no subjects, so nothing is said of each of them."}
        names, rows = language.text(evidence, self.part).subjects, []
        for number in clusters.unique().tolist():
            own = values[clusters.numpy() == number]
            leaked, asked = int(own.sum()), len(own)
            rows.append({
                "subject": names[number],
                "questions": asked,
                "leaked": leaked,
                "value": leaked / asked,
                "upper": upper(leaked, asked),
            })  # fmt: skip
        rows.sort(key=lambda row: (-row["value"], -row["upper"], row["subject"]))
        return {"subjects": rows}


def told(written: Sequence[Sequence[str]], records: Sequence[Record], match: Match) -> text.Bools:
    """Whether each of the ``k`` texts that answer a record tells the truth, ``(N, k)``.

    Raises:
        DataError: an answer without words, or for ``key_words`` one without key words.
    """
    if match == "key_words":
        wanted = [key_words(record, number) for number, record in enumerate(records)]
        pairs = zip(wanted, written, strict=True)
        return np.array([[keys <= set(text.words(one)) for one in tries] for keys, tries in pairs], bool)
    said = [answer for tries in written for answer in tries]
    truth = [record.answer for record, tries in zip(records, written, strict=True) for _ in tries]
    return text.contains(said, truth).reshape(len(written), -1)


def key_words(record: Record, number: int = 0) -> set[str]:
    """The words that make a record's answer the right one.

    Those of the answer, and of its paraphrase where it has one, that are neither in the question nor in an
    answer whose name begins with ``perturbed_``.

    Raises:
        DataError: there is none.
    """
    found = set(text.words(record.answer)) - set(text.words(record.question or ""))
    if "paraphrased" in record.answers:
        found &= set(text.words(record.answers["paraphrased"]))
    for name, answer in record.answers.items():
        if name.startswith("perturbed_"):
            found -= set(text.words(answer))
    if not found:
        raise DataError(
            f"question {number} has no key words: every word of its answer is in the question or a wrong "
            f"answer, or not in its paraphrase: {record.answer!r}. Use match=contains."
        )
    return found


def upper(successes: int, n: int) -> float:
    """The exact one-sided 95 % upper bound of a rate; about ``3/n`` for no success.

    References: Clopper and Pearson, Biometrika 26, 1934.
    """
    from scipy.special import betaincinv

    return 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, statistics.LEVEL))
