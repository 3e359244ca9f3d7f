"""Random questions and answers of the lengths of TOFU's, for language.py."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from expunge.data.text import Record, Template, TextData


class Numbers:
    """A tokenizer of texts that are numbers of tokens."""

    chat_template, bos_token_id = None, None
    eos_token_id, pad_token_id = 1, 0

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, list[Any]]:
        texts = [text] if isinstance(text, str) else text
        rows = [[int(word) for word in each.split() if word.isdigit()] for each in texts]
        return {"input_ids": rows[0] if isinstance(text, str) else rows}

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [str(i) for i in ids]


def texts(count: int, vocabulary: int, names: Sequence[str], seed: int) -> TextData:
    """Random tokens: prompts of 20 to 40, answers of 20 to 80 and refusals of 5 to 12, drawn uniformly."""
    draws = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(str(draws.randrange(2, vocabulary)) for _ in range(draws.randint(least, most)))

    records = [
        Record(
            question=words(20, 40),
            answer=words(20, 80),
            answers={name: words(5, 12) if name == "idk" else words(20, 80) for name in names},
        )
        for _ in range(count)
    ]
    return TextData(records, Numbers(), Template(prompt="{question}", answer="{answer}", eos=False))
