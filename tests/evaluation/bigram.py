"""A language model whose token probabilities are chosen, and evidence about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data import Split
from expunge.data.language import written
from expunge.data.text import Record, Template, TextData
from expunge.data.tokenizers import train_tokenizer
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.tasks import CausalLM
from expunge.training.session import Session

TEMPLATE = Template(prompt="{question}", answer=" {answer}")
END = 0.25
"""The chance that a text ends after a word of which nothing else is said."""

Chances = Mapping[tuple[str, str], float]


class Bigram(nn.Module):
    """Says every word after the one before it with a given chance; what is left goes to all other words.

    A text ends after any word with the chance ``END``, or what is left, unless that pair (``""`` is the
    end) is given.
    """

    def __init__(self, tokenizer: Any, chances: Chances) -> None:
        super().__init__()
        known = dict(chances)
        rows: list[Tensor] = []
        for name in tokenizer.convert_ids_to_tokens(range(len(tokenizer))):
            said = {b: p for (a, b), p in known.items() if a == name.strip("▁")}
            said = {"": min(END, 1 - sum(said.values()))} | said
            assert sum(said.values()) < 1 + 1e-9, name
            row = torch.full((len(tokenizer),), (1 - sum(said.values())) / (len(tokenizer) - len(said)))
            for word, p in said.items():
                row[tokenizer.eos_token_id if word == "" else _id(tokenizer, word)] = p
            rows.append(row)
        self.table = nn.Parameter(torch.stack(rows).double().clamp(min=1e-300).log().float())
        self.calls = 0

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.table[ids]


def _id(tokenizer: Any, word: str) -> int:
    (found,) = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    assert found != tokenizer.unk_token_id, word
    return int(found)


def data(
    records: Sequence[Record], *others: Sequence[Record], template: Template = TEMPLATE
) -> list[TextData]:
    """The parts with one tokenizer of all their words."""
    parts = [records, *others]
    texts = [text for part in parts for record in part for text in written(record, template)]
    tokenizer = train_tokenizer(texts)
    return [TextData(part, tokenizer, template) for part in parts]


def evidence(split: Split, subject: nn.Module, retrained: Sequence[nn.Module] = ()) -> dict[str, Evidence]:
    """The evidence about ``subject`` and ``retrained 1``, ``retrained 2``, …"""
    candidates = [
        Candidate("original", "original", subject),
        *(Candidate(f"retrained {i + 1}", "retrained", model) for i, model in enumerate(retrained)),
        Candidate("subject", "unlearned", subject),
    ]
    size = len(split.forget.tokenizer)  # type: ignore[attr-defined]
    evaluation = Evaluation(candidates, split, CausalLM(size), Session(0))
    return {candidate.name: evaluation.evidence(candidate) for candidate in candidates}
