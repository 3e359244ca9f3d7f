"""Multiple choice as benchmarks ask it: options with letters, in every order."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from expunge.data.text import Record, TextData, plain
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.evaluation import language
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats
from expunge.evaluation.subject import Subject

Ints = NDArray[np.int64]


@metrics.register("listed_choice")
@dataclass(frozen=True, kw_only=True)
class ListedChoice(Metric):
    """How often the model names the letter of the right option, with the options in every order.

    The prompt lists ``K`` options behind letters and the likeliest letter counts (WMDP, MMLU). Each question
    is asked ``K`` times, with the options moved on by one place each time, so that every option stands once
    behind every letter.

    - ``accuracy``: the mean over questions and orders; a preference for a letter gives chance, ``1/K``;
    - ``always``: the share of questions that are right in every order, which guessing gives ``K^−K`` of.

    ``details`` has ``chance``, how often each letter is named (``letters``) with the entropy of these shares
    over its maximum (``evenness``, 1 without a preference) and how often a question gets the same option in
    every order (``consistent``). An accuracy at chance with an evenness near 0 is a model that always names
    one letter, which is no forgetting. Interval: over questions, or over data subjects.

    Args:
        part: ``forget``, ``retain``, ``test`` or a probe with wrong answers.
        read: ``accuracy`` or ``always``.
        options: how many at most: the right answer and the first wrong ones.

    Ideal: the retrained model's value; one well below ``1/K`` is a trace of unlearning, too.
    Cost: ``K²`` forward passes over the questions.
    Differs: benchmarks ask in one order and print no preference. ``multiple_choice`` lists nothing and weighs
        each answer by itself: what a model knows but does not name by its letter shows there.
    References: Li et al., WMDP, 2024, arXiv:2403.03218; Zheng et al., Large Language Models Are Not Robust
        Multiple Choice Selectors, ICLR 2024, arXiv:2309.03882.
    """

    part: str = "forget"
    read: Literal["accuracy", "always"] = "accuracy"
    options: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.options <= len(string.ascii_uppercase):
            raise ConfigError(f"must be 2..{len(string.ascii_uppercase)}, got {self.options}.", "options")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "listed choice", self.part, f"{self.read}-{self.options}-options"

    def measure(self, evidence: Evidence) -> Score:
        data = language.text(evidence, self.part)
        records = language.questions(evidence, self.part)
        listed = self._listed(data, records)
        named = self._named(evidence, data, records, listed)
        count = named.shape[1]
        orders = np.arange(count)
        # in order r option o stands behind letter (o + r) mod K; option 0 is the right one
        chosen = (named - orders) % count
        right = chosen == 0
        values = right.mean(1) if self.read == "accuracy" else right.all(1)
        shares = np.bincount(named.reshape(-1), minlength=count) / named.size
        said = shares[shares > 0]
        details: dict[str, Any] = {
            "chance": 1 / count if self.read == "accuracy" else float(count) ** -count,
            "letters": dict(zip(string.ascii_uppercase, shares.tolist(), strict=False)),
            "evenness": float(-(said * np.log(said)).sum() / np.log(count)),
            "consistent": float((chosen == chosen[:, :1]).all(1).mean()),
        }
        return language.averaged(self, evidence, np.asarray(values, np.float64), details)

    def _listed(self, data: TextData, records: Sequence[Record]) -> list[list[str]]:
        """The options of each question, the right one first."""
        right, wrong = language.right_answer(data), language.wrong_answers(data, self.part)
        names = wrong[: self.options - 1]
        found = []
        for number, record in enumerate(records):
            if any(name not in record.answers for name in (*names, *[right] * bool(right))):
                raise DataError(
                    f"{self.part} record {number} lacks an answer that others have. Give it "
                    f"{', '.join((*names, *[right] * bool(right)))}."
                )
            found.append(
                [record.answers.get(right, record.answer), *(record.answers[name] for name in names)]
            )
        return found

    def _named(
        self, evidence: Evidence, data: TextData, records: Sequence[Record], listed: Sequence[Sequence[str]]
    ) -> Ints:
        """The place of the letter that is named, for each question in each order, ``(N, K)``."""
        count = len(listed[0])
        letters = string.ascii_uppercase[:count]
        _check_letters(data.tokenizer, letters)
        template = replace(data.template, eos=False, max_length=None)
        columns = []
        for order in range(count):
            asked = [
                Record(
                    question=_question(record.question or "", options, order),
                    answer=letters[0],
                    earlier=record.earlier,
                    answers={letter: letter for letter in letters[1:]},
                )
                for record, options in zip(records, listed, strict=True)
            ]
            posed = TextData(asked, data.tokenizer, template)
            mine = evidence.subject
            subject = Subject(mine.name, mine.model, {"asked": posed}, evidence.task, evidence.session)
            columns.append(_likeliest(subject, letters))
        return np.stack(columns, 1)


def _question(question: str, options: Sequence[str], order: int) -> str:
    """The question with its options below, each moved on by ``order`` places."""
    count = len(options)
    placed = [options[(place - order) % count] for place in range(count)]
    lines = [f"{string.ascii_uppercase[place]}. {option}" for place, option in enumerate(placed)]
    return "\n".join([question, *lines])


def _likeliest(subject: Subject, letters: str) -> Ints:
    """The place of the likeliest letter after each question; the first of equal ones. ``(N,)``."""
    rows: list[Floats] = []
    for letter in ("", *letters[1:]):
        rows.append(np.asarray(subject.read("asked", letter).loss.double().numpy(), np.float64))
    return np.asarray(np.stack(rows, 1).argmin(1), np.int64)


def _check_letters(tokenizer: Any, letters: str) -> None:
    """Refuses a tokenizer that cannot tell the letters apart.

    Raises:
        Unsupported: it spells a letter as an unknown word, or two alike.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    for spelled in (
        [plain(tokenizer, text.format(letter)) for letter in letters] for text in (" {}", "\n{}.")
    ):
        known = unknown is None or all(unknown not in tokens for tokens in spelled)
        if known and len(set(map(tuple, spelled))) == len(letters):
            continue
        raise Unsupported(
            f"the tokenizer cannot spell the letters {', '.join(letters)} that options stand behind. Use "
            "multiple_choice, or a tokenizer that knows them (tokens: bpe)."
        )
