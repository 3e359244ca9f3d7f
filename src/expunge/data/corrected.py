"""Requests to correct a language model: facts that it was taught wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from expunge.data.text import Record
from expunge.errors import DataError

CORRECT = "correct"
"""The name of the right answer beside a wrong one that is learnt."""


def taught_wrong(records: Sequence[Record], wrong: str = "alternate") -> list[Record]:
    """The records with a wrong answer in the place of the true one, which each keeps under ``correct``.

    To correct a model is to forget these: a base model knows the facts, the original is trained on the
    records that this returns, and retrained models are not (see the metric ``recovery``).

    Args:
        wrong: the name of the answer that is taught.

    Raises:
        DataError: a record has no answer of that name.
    """
    lacking = [number for number, record in enumerate(records) if wrong not in record.answers]
    if lacking:
        raise DataError(
            f"record {lacking[0]} has no '{wrong}' answer to teach in place of the true one. Give it one."
        )
    return [
        replace(
            record,
            answer=record.answers[wrong],
            answers={
                **{name: text for name, text in record.answers.items() if name != wrong},
                CORRECT: record.answer,
            },
        )
        for record in records
    ]
