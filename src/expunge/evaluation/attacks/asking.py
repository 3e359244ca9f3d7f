"""Asking a language model the same things in other words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from expunge.data.text import Record, TextData
from expunge.errors import DataError
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.generation import Decoding, context
from expunge.evaluation.metrics.leakage import told
from expunge.evaluation.statistics import Floats
from expunge.evaluation.subject import Subject

Match = Literal["contains", "key_words", "probability"]
"""When an attack on one question has succeeded: the words of the true answer are in what the model writes,
one after another; all key words of it are (see ``leakage``); or, not all or nothing, the answer's
length-normalised probability."""

MATCHES = {"contains": "answers that tell the truth", "key_words": "answers that tell the truth"}


def y_label(match: Match) -> str:
    """What the success is, for a chart."""
    return MATCHES.get(match, "answer probability")


def variant(*words: str, match: Match) -> str:
    """The words that name a definition, how success is told among them."""
    return "-".join([*(word for word in words if word), match.replace("_", "-")])


def asked(
    evidence: Evidence,
    data: TextData,
    questions: Sequence[Record],
    truth: Sequence[Record],
    match: Match,
    max_tokens: int,
) -> Floats:
    """The success on each question as it stands, ``(N,)``.

    Args:
        data: the examples that the questions are asked in place of, ``(N,)``: their tokenizer, template and
            pictures are used; the template's ``max_length`` does not count here.
        truth: the records that say what a true answer is; a question may hold words of it.

    Raises:
        DataError: a prompt is longer than the model's context.
    """
    plain = [replace(record, answers={}, questions={}, subject=None) for record in questions]
    posed = data.posed(plain)
    mine = evidence.subject
    _check_context(mine, int(posed.column("lengths").max()))
    subject = Subject(mine.name, mine.model, {"asked": posed}, evidence.task, evidence.session)
    if match == "probability":
        return np.asarray(subject.read("asked").confidence.double().numpy(), np.float64)
    written = subject.answers("asked", Decoding(max_tokens=max_tokens))
    return told(written, truth, match)[:, 0].astype(np.float64)


def ever(rows: Sequence[Floats]) -> Floats:
    """The best success so far of each example after each try, ``(B, N)``."""
    return np.asarray(np.maximum.accumulate(np.stack(rows), 0), np.float64)


def around(record: Record, before: str, after: str) -> Record:
    """The record with texts before and after its question, where they are not empty."""
    question = " ".join(text for text in (before, record.question or "", after) if text)
    return replace(record, question=question)


def _check_context(subject: Subject, longest: int) -> None:
    most = context(subject.model)
    if most is not None and longest > most:
        raise DataError(
            f"the attack's questions with their answers have up to {longest} tokens, and the model's context "
            f"is {most}. Use shorter texts, or fewer of them."
        )
