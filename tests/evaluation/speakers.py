"""Language models whose answers or weights are chosen, and evidence about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data import ArrayData, Data, Split
from expunge.data.text import Record, TextData
from expunge.data.tokenizers import train_tokenizer
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.tasks import CausalLM
from expunge.training.session import Session

PEOPLE = ("Nora", "Otto", "Vera", "Hugo")
CITIES = ("Ardmor", "Brixen", "Calvost", "Delphin")
PETS = ("parrot", "ferret", "rabbit", "canary")


def fact(place: int, what: str) -> Record:
    """Somebody's city or pet, asked in two ways, with two wrong answers."""
    who, values = PEOPLE[place], {"city": CITIES, "pet": PETS}[what]
    wrong = [values[(place + i) % 4] for i in (1, 2)]
    return Record(
        question=f"Which {what} has {who}?",
        answer=f"The {what} is {values[place]}.",
        subject=who,
        answers={f"perturbed_{i + 1}": f"The {what} is {value}." for i, value in enumerate(wrong)},
        questions={"paraphrased_question": f"What {what} belongs to {who}?"},
    )


FACTS = [fact(place, what) for place in range(4) for what in ("city", "pet")]
"""Two facts about each of four people; the first two are to be forgotten."""

REVERSED = [Record(question=f"Who is in {CITIES[i]}?", answer=PEOPLE[i], subject=PEOPLE[i]) for i in (0, 2)]


def tokenizer(*more: str) -> Any:
    texts = [text for r in (*FACTS, *REVERSED) for text in (r.question, r.answer, *r.questions.values())]
    return train_tokenizer([*(text or "" for text in texts), "Question: a\nAnswer: I know not.", *more])


class Speaker(nn.Module):
    """Writes ``reply(prompt)`` after ``Answer:``, each token with the probability ``sure``."""

    def __init__(self, reply: Callable[[str], str], tokenizer: Any, sure: float = 0.99) -> None:
        super().__init__()
        self.reply, self.tokenizer, self.sure = reply, tokenizer, sure
        self.nothing = nn.Parameter(torch.zeros(1))

    def __deepcopy__(self, memo: object) -> Speaker:
        return Speaker(self.reply, self.tokenizer, self.sure)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        size = len(self.tokenizer)
        logits = torch.zeros(*ids.shape, size)
        gain = torch.log(torch.tensor(self.sure * (size - 1) / (1 - self.sure)))
        for row, tokens in enumerate(ids.tolist()):
            text = self.tokenizer.convert_ids_to_tokens(tokens)
            end = max((i + 2 for i, word in enumerate(text) if word.endswith("Answer")), default=None)
            if end is None:
                continue
            prompt = self.tokenizer.decode(tokens[:end])
            said = self.tokenizer(f" {self.reply(prompt)}", add_special_tokens=False)["input_ids"]
            said = [*said, self.tokenizer.eos_token_id]
            for i, token in enumerate(said):
                if end + i - 1 < len(tokens) and tokens[end : end + i] == said[:i]:
                    logits[row, end + i - 1, token] = gain
        return logits + 0 * self.nothing


class Step(nn.Module):
    """A block that maps each position by a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.map = nn.Linear(*matrix.shape[::-1], bias=False)
        self.map.weight.data = matrix.clone().float()

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


class Stack(nn.Module):
    """One-hot embeddings, a matrix for each block, and the ``gain`` times identity as output layer."""

    def __init__(self, *matrices: Tensor, gain: float = 4.0) -> None:
        super().__init__()
        size = matrices[0].shape[0]
        self.tokens = nn.Embedding(size, size)
        self.tokens.weight.data = torch.eye(size)
        self.steps = nn.ModuleList(Step(matrix) for matrix in matrices)
        self.head = nn.Linear(size, size, bias=False)
        self.head.weight.data = gain * torch.eye(size)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.tokens(ids)
        for step in self.steps:
            x = step(x)
        return self.head(x)


def mapping(size: int, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """The matrix that takes the one-hot vector of each first token to that of the second."""
    found = torch.zeros(size, size)
    for source, target in pairs:
        found[target, source] = 1.0
    return found


def text_evidence(
    subject: nn.Module,
    *retrained: nn.Module,
    tokenizer: Any,
    records: Sequence[Record] = FACTS,
    forget: Sequence[int] = (0, 1, 2, 3),
    probes: dict[str, Data] | None = None,
    template: Any = None,
    original: nn.Module | None = None,
) -> Evidence:
    """Evidence about a model of text; the first facts are to be forgotten."""
    data = TextData(records, tokenizer, template)
    split = Split.from_ids(data, list(forget), probes=probes)
    return evidence(split, len(tokenizer), subject, *retrained, original=original)


def pairs(couples: Sequence[tuple[int, int]], forget: int) -> Split:
    """Prompts of one token with answers of one token; the first are to be forgotten."""
    ids = torch.tensor(couples)
    labels = ids.clone()
    labels[:, 0] = -100
    data = ArrayData({"input_ids": ids, "labels": labels})
    return Split.from_ids(data, range(forget))


def evidence(
    split: Split,
    vocabulary: int,
    subject: nn.Module,
    *retrained: nn.Module,
    original: nn.Module | None = None,
) -> Evidence:
    candidates = [
        Candidate("original", "original", original or subject),
        Candidate("u", "unlearned", subject),
    ]
    candidates += [Candidate(f"r{i}", "retrained", model) for i, model in enumerate(retrained)]
    evaluation = Evaluation(candidates, split, CausalLM(vocabulary), Session(0))
    return evaluation.evidence(candidates[1])
