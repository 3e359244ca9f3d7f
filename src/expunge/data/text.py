"""Questions with answers, chats and documents, as tokens that live on one device."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from expunge.data.arrays import ArrayData, Batch, digest, random_order
from expunge.errors import DataError

IGNORED = -100
"""The label of a token that is not to be predicted: prompt and padding."""

POOL = 32
"""Batches among which examples are sorted by length."""

FEW = 8
"""Examples that are read together whatever their lengths."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One thing to be learnt: the answer to a question, the last turn of a chat, or a document.

    Args:
        answer: what is to be predicted; the text itself for a document.
        question: what it answers; None for a document.
        earlier: turns of a chat before the question, as pairs of role and content.
        subject: whom or what it is about: the unit of requests and of statistics.
        answers: other answers to the same question, by name: ``idk``, ``paraphrased``, ``perturbed_1`` …
        questions: other questions by name, with the answer of that name, or where there is none with the
            record's own.
    """

    answer: str
    question: str | None = None
    earlier: tuple[tuple[str, str], ...] = ()
    subject: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    questions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a record becomes tokens. Prompt and answer are tokenised apart; only the answer has labels.

    Args:
        prompt: around the question, where there is no chat template; its end belongs to the prompt.
        answer: around the answer.
        chat: whether the tokenizer's chat template makes the prompt; None where it has one.
        system: the system turn of a chat; none where empty.
        eos: whether the end-of-text token follows the answer, with a label.
        max_length: tokens of the longest example; longer questions are refused, documents are cut into
            pieces of this length.
    """

    prompt: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"
    chat: bool | None = None
    system: str = ""
    eos: bool = True
    max_length: int | None = None

    def texts(self, record: Record, tokenizer: Any) -> tuple[str, str, bool]:
        """Prompt and answer as text, and whether the prompt brings its own beginning.

        Raises:
            DataError: an empty answer, or a chat without a chat template.
        """
        if not record.answer.strip():
            raise DataError("an answer is empty. Remove the record, or write what is to be learnt.")
        there = bool(getattr(tokenizer, "chat_template", None))
        if record.question is None:
            return "", record.answer, False
        if there if self.chat is None else self.chat:
            return self._chat(record, tokenizer), record.answer, True
        if record.earlier:
            raise DataError("a chat of several turns needs the tokenizer's chat template, and it has none.")
        prompt = self.prompt.replace("{question}", record.question)
        return prompt, self.answer.replace("{answer}", record.answer), False

    def encode(self, record: Record, tokenizer: Any) -> tuple[list[int], int]:
        """The tokens of prompt and answer, and how many of them are prompt.

        Raises:
            DataError: as ``texts``, or no end-of-text token where one is asked for.
        """
        return self.encode_all([record], tokenizer)[0]

    def encode_all(self, records: Sequence[Record], tokenizer: Any) -> list[tuple[list[int], int]]:
        """The same of many records, with one call of the tokenizer.

        Raises:
            DataError: likewise, with the number of the record.
        """
        if self.eos and tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-text token. Set its eos_token, or use eos=false.")
        found = []
        for number, record in enumerate(records):
            try:
                found.append(self.texts(record, tokenizer))
            except DataError as error:
                raise DataError(f"record {number}: {error}") from None
        known = sorted({text for prompt, answer, _ in found for text in (prompt, answer) if text})
        tokens = dict(zip(known, tokenizer(known, add_special_tokens=False)["input_ids"], strict=True))
        start, end = beginning(tokenizer), [tokenizer.eos_token_id] if self.eos else []
        rows = []
        for prompt, answer, complete in found:
            before = [*([] if complete else start), *tokens.get(prompt, [])]
            rows.append(([*before, *tokens[answer], *end], len(before)))
        return rows

    def _chat(self, record: Record, tokenizer: Any) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise DataError("the tokenizer has no chat template. Set its chat_template, or use chat=false.")
        turns = [("system", self.system)] if self.system else []
        turns += [*record.earlier, ("user", record.question or "")]
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def plain(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, nothing added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def beginning(tokenizer: Any) -> list[int]:
    """The token that the tokenizer puts before every text, if it has one."""
    start = getattr(tokenizer, "bos_token_id", None)
    added = list(tokenizer("a")["input_ids"])
    return [start] if start is not None and added[:1] == [start] else []


class TextData(ArrayData):
    """Records as padded tokens on one device; a batch is cut to its longest example.

    A batch holds ``input_ids``, ``labels`` (−100 where nothing is to be predicted) and
    ``attention_mask``, all ``(N, T)``, padded on the right; for every name in ``answers`` and
    ``questions`` of the records the same under ``<name>.input_ids`` and so on; and ``subjects`` ``(N,)``
    where records have one.

    Args:
        records: all with the same names of other answers and questions.
        tokenizer: of Hugging Face; it also reads answers back.
        template: how a record becomes tokens.
        columns: further columns, a row for each record.

    Attributes:
        records: of the root data set, by id; documents cut into pieces appear once for each.
        names: of the other answers and questions.
        subjects: their names, in the order of the column's numbers.

    Raises:
        DataError: no records, an empty answer, or an example longer than ``max_length``.
    """

    beside: ClassVar[tuple[str, ...]] = ()
    """Columns that a model is given beside the tokens, when it writes too."""

    def __init__(
        self,
        records: Sequence[Record],
        tokenizer: Any,
        template: Template | None = None,
        columns: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.tokenizer, self.template = tokenizer, template or Template()
        self.names = _names(records)
        self.records: list[Record] = []
        rows: dict[str, list[tuple[list[int], int]]] = {name: [] for name in ("", *self.names)}
        encoded, numbers = self._encoded(records), list[int]()
        for number, record in enumerate(records):
            for piece in self._pieces(record, number, {name: encoded[name][number] for name in encoded}):
                self.records.append(record)
                numbers.append(number)
                for name, tokens in piece.items():
                    rows[name].append(tokens)
        columns = {name: values[numbers] for name, values in (columns or {}).items()}
        for name, encoded_rows in rows.items():
            columns |= _columns(f"{name}." if name else "", encoded_rows, _padding(tokenizer))
        found = {record.subject for record in self.records}
        self.subjects = tuple(sorted(name for name in found if name is not None))
        if self.subjects:
            if None in found:
                number = next(i for i, record in enumerate(self.records) if record.subject is None)
                raise DataError(f"record {number} has no subject, but others have. Give all one, or none.")
            place = {name: index for index, name in enumerate(self.subjects)}
            columns["subjects"] = torch.tensor([place[record.subject or ""] for record in self.records])
        super().__init__(columns)

    def batches(
        self,
        order: Iterable[Tensor],
        *,
        device: torch.device | str,
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        for batch in super().batches(order, device=device, generator=generator):
            for name in ("", *self.names):
                prefix = f"{name}." if name else ""
                lengths = batch.pop(f"{prefix}lengths")
                longest = int(lengths.max())
                for column in ("input_ids", "labels"):
                    batch[prefix + column] = batch[prefix + column][:, :longest]
                places = torch.arange(longest, device=lengths.device)
                batch[f"{prefix}attention_mask"] = (places < lengths[:, None]).long()
            yield batch

    def random_order(self, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        """Random batches of examples of similar length: sorted within pools of 32 batches."""
        shuffled = torch.cat(random_order(len(self), batch_size, generator))
        sizes = [len(batch) for batch in random_order(len(self), batch_size, torch.Generator())]
        lengths = self.column("lengths")
        pools = [pool[lengths[pool].argsort(stable=True)] for pool in shuffled.split(POOL * batch_size)]
        batches = torch.cat(pools).split(sizes)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def even_order(self, batch_size: int, answer: str = "") -> list[Tensor]:
        """The shortest examples first; a batch of at least 8 ends before one that is a fifth longer."""
        column = self.column(f"{answer}.lengths" if answer in self.names else "lengths")
        order = column.argsort(stable=True)
        sizes, shortest = [0], 0
        for length in column[order].tolist():
            if sizes[-1] == batch_size or (sizes[-1] >= FEW and length > 1.2 * shortest):
                sizes.append(0)
            shortest = shortest if sizes[-1] else length
            sizes[-1] += 1
        return list(order.split(sizes))

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            names = sorted(self._storage.columns)
            columns = [("ids", self.ids), *((name, self.column(name)) for name in names)]
            self._fingerprint = digest(columns, json.dumps(asdict(self.template), sort_keys=True))
        return self._fingerprint

    def record(self, id_: int) -> Record:
        """The record of an example."""
        return self.records[id_]

    def posed(self, records: Sequence[Record]) -> TextData:
        """Other records in place of these examples, one for each, with no limit of their length."""
        return TextData(records, self.tokenizer, replace(self.template, max_length=None))

    def shown(self, id_: int) -> str:
        """One example as it reaches the model: every token, and where its labels begin."""
        (batch,) = self.subset([id_]).batches([torch.tensor([0])], device="cpu")
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        tokens = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        tokens = [token.replace("\n", "\\n") for token in tokens]
        first = int((labels != IGNORED).nonzero()[0])
        return f"prompt, no labels: {' '.join(tokens[:first])}\nlabels: {' '.join(tokens[first:])}"

    def _encoded(self, records: Sequence[Record]) -> dict[str, list[tuple[list[int], int]]]:
        """Of every record its own answer and the others by name; no tokens for one that it has not."""
        found = {"": self.template.encode_all(records, self.tokenizer)}
        for name in self.names:
            there = [number for number, record in enumerate(records) if _has(record, name)]
            try:
                tokens = self.template.encode_all(
                    [_other(records[number], name) for number in there], self.tokenizer
                )
            except DataError as error:
                raise DataError(f"'{name}' of the records that have it: {error}") from None
            rows: list[tuple[list[int], int]] = [([], 0)] * len(records)
            for number, row in zip(there, tokens, strict=True):
                rows[number] = row
            found[name] = rows
        return found

    def _pieces(
        self, record: Record, number: int, views: dict[str, tuple[list[int], int]]
    ) -> Iterator[dict[str, tuple[list[int], int]]]:
        longest, most = max(len(tokens) for tokens, _ in views.values()), self.template.max_length
        if most is None or longest <= most:
            yield views
        elif record.question is None and not self.names:
            tokens = views[""][0]
            for start in range(0, len(tokens), most):
                piece = tokens[start : start + most]
                if len(piece) > 1:
                    yield {"": (piece, 0)}
        else:
            raise DataError(
                f"record {number} has {longest} tokens, more than max_length={most}. Shorten it, or raise "
                "max_length up to the model's context."
            )


def _has(record: Record, name: str) -> bool:
    return name in record.answers or name in record.questions


def _other(record: Record, name: str) -> Record:
    """The record with the other answer and question of a name in place of its own."""
    return Record(
        answer=record.answers.get(name, record.answer),
        question=record.questions.get(name, record.question),
        earlier=record.earlier,
    )


def _names(records: Sequence[Record]) -> tuple[str, ...]:
    if not records:
        raise DataError("there are no records. A data set needs at least one.")
    return tuple(dict.fromkeys(name for r in records for name in (*r.answers, *r.questions)))


def _columns(prefix: str, rows: list[tuple[list[int], int]], padding: int) -> dict[str, Tensor]:
    lengths = torch.tensor([len(tokens) for tokens, _ in rows])
    ids = torch.full((len(rows), int(lengths.max())), padding)
    labels = torch.full_like(ids, IGNORED)
    for row, (tokens, prompt) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, prompt : len(tokens)] = ids[row, prompt : len(tokens)]
    return {f"{prefix}input_ids": ids, f"{prefix}labels": labels, f"{prefix}lengths": lengths}


def _padding(tokenizer: Any) -> int:
    """What stands where nothing stands; masked, so that any token will do."""
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    return 0
