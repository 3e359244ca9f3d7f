"""Options behind letters in every order, asked of models that read or do not read them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.evaluation.micro import sound
from torch import Tensor, nn

pytest.importorskip("transformers")

from expunge.data import Split
from expunge.data.text import Record, Template, TextData
from expunge.data.tokenizers import train_tokenizer
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.metrics.listed_choice import ListedChoice, _question
from expunge.tasks import CausalLM
from expunge.training.session import Session

CITIES = ["rome", "oslo", "bern", "lima"]
RECORDS = [
    Record(
        question=f"where lives p{i} ?",
        answer=CITIES[i],
        subject=f"p{i}",
        answers={f"perturbed_{k}": CITIES[(i + k) % 4] for k in (1, 2, 3)},
    )
    for i in range(4)
]
TEMPLATE = Template(prompt="{question} answer")


class Reader(nn.Module):
    """Names the letter that ``choose`` gives for the words of the prompt."""

    def __init__(self, tokenizer: object, choose: Callable[[list[str]], str]) -> None:
        super().__init__()
        self.tokenizer, self.choose = tokenizer, choose
        self.nothing = nn.Parameter(torch.zeros(1))

    def __deepcopy__(self, memo: object) -> Reader:
        return Reader(self.tokenizer, self.choose)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits = torch.zeros(*ids.shape, len(self.tokenizer))
        for row, tokens in enumerate(ids.tolist()):
            words = [word.strip("▁") for word in self.tokenizer.convert_ids_to_tokens(tokens)]
            letter = self.choose(words[: words.index("answer")])
            (token,) = self.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"]
            logits[row, words.index("answer"), token] = 5.0
        return logits + 0 * self.nothing


def knows(words: list[str]) -> str:
    """The letter before the city where the person asked about lives."""
    city = CITIES[int(words[2][1:])]
    return words[words.index(city) - 2]


def made(choose: Callable[[list[str]], str], letters: str = "A B C D"):
    texts = [
        f"answer where lives ? {' '.join(CITIES)} p0 p1 p2 p3",
        *(f" {x}\n{x}." for x in letters.split()),
    ]
    words = train_tokenizer(texts)
    data = TextData(RECORDS, words, TEMPLATE)
    model = Reader(words, choose)
    candidates = [Candidate("original", "original", model), Candidate("u", "unlearned", model)]
    split = Split.from_ids(data, [0, 1, 2])
    return Evaluation(candidates, split, CausalLM(len(words)), Session(0)).evidence(candidates[1])


def test_the_options_move_on_by_one_place_each_time() -> None:
    asked = _question("q", ["r", "x", "y"], 0), _question("q", ["r", "x", "y"], 2)
    assert asked == ("q\nA. r\nB. x\nC. y", "q\nA. x\nB. y\nC. r")


def test_who_reads_the_options_is_right_in_every_order() -> None:
    found = made(knows)
    score = ListedChoice()(found)
    assert score.per_example.tolist() == [1.0] * 3
    assert score.details["consistent"] == 1.0
    assert score.details["letters"] == dict.fromkeys("ABCD", 0.25)
    assert score.details["evenness"] == pytest.approx(1.0)
    assert ListedChoice(read="always")(found).value == 1.0
    sound(score)


def test_one_letter_for_everything_is_chance_and_is_seen() -> None:
    """In one order, with the right option first, the same model has every question right."""
    found = made(lambda words: "A")
    score = ListedChoice()(found)
    assert score.value == score.details["chance"] == 0.25
    assert score.details["letters"]["A"] == 1.0
    assert score.details["evenness"] == 0.0
    assert score.details["consistent"] == 0.0
    assert ListedChoice(read="always")(found).value == 0.0
    assert ListedChoice(read="always")(found).details["chance"] == 4.0**-4


def test_fewer_options_are_the_right_one_and_the_first_wrong_ones() -> None:
    score = ListedChoice(options=2)(made(lambda words: "B"))
    assert (score.value, score.details["chance"], score.variant) == (0.5, 0.5, "accuracy-2-options")


def test_a_tokenizer_without_the_letters_is_refused() -> None:
    """With one unknown word for all letters every option would be equally likely: a silent chance level."""
    found = made(lambda words: "A", letters="A B C")
    assert "cannot spell the letters A, B, C, D" in str(ListedChoice()(found).reason)
