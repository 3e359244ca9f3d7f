"""Text to train on and to forget: invented people, and your own files."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from expunge.data import people as invented
from expunge.data.jsonl import read_records
from expunge.data.people import CIRCLE, Person
from expunge.data.phrases import ATTRIBUTES
from expunge.data.source import DataSource, Sourced, sources
from expunge.data.text import Record, Template, TextData
from expunge.data.tokenizers import load_tokenizer, train_tokenizer
from expunge.errors import ConfigError, DataError
from expunge.seeding import derive


@dataclass(frozen=True, kw_only=True)
class TextSource(DataSource):
    """Text for a causal language model; every part is a ``TextData`` with one tokenizer.

    Args:
        tokenizer: the folder of a tokenizer; without it one is trained on all the text there is.
        tokens: what a trained tokenizer's tokens are.
        vocabulary: their number at most, as ``train_tokenizer`` has it.
        template: how a record becomes tokens.
    """

    tokenizer: Path | None = None
    tokens: Literal["word", "bpe"] = "word"
    vocabulary: int | None = None
    template: Template = Template()

    def encoder(self, records: Iterable[Record]) -> Any:
        """The tokenizer: read from its folder, or trained on these records.

        Raises:
            DataError: it cannot be loaded, or a chat of several turns needs a chat template it has not.
        """
        records = list(records)
        if self.tokenizer is not None:
            found = load_tokenizer(self.tokenizer)
        else:
            texts = (text for record in records for text in written(record, self.template))
            found = train_tokenizer(texts, vocabulary=self.vocabulary, kind=self.tokens)
        chat = found.chat_template is not None and self.template.chat is not False
        if not chat and any(record.earlier for record in records):
            raise DataError(
                "a chat has more turns than a question and its answer, and without a chat template these "
                "would be lost. Give the tokenizer of a chat model with tokenizer=FOLDER, or one turn each."
            )
        return found


@sources.register("people")
@dataclass(frozen=True, kw_only=True)
class People(TextSource):
    """Invented people, of whom everything is known: what is true, what is not, and who knows whom.

    Trained on are questions about ``people`` people (with the other answers of
    ``expunge.data.people.record``) and the capitals of 40 invented countries. Other people serve as

    - ``base``: ``background`` people in both answer templates and after both questions, with their
      biographies, reversed questions and questions about their mentors, and the same capitals. Original
      and retrained models both start from a model of these: without it no model has seen the
      paraphrases, and a truth ratio measures nothing;
    - ``test``: ``held_out`` people who are never trained on: non-members from the same distribution.

    ``probes``: ``world`` (the capitals), ``reversed``, ``multi_hop`` (about somebody's mentor, who is the
    subject) and ``biographies``, all about the people trained on. ``sets``: ``forget05``, ``forget10`` and
    ``forget20``, the last people by that share, where it is a whole number of circles of four; nobody
    outside a circle is related to it, so that no retained record names anyone forgotten.

    Args:
        people, background, held_out: how many, each a multiple of 4.
        attributes: questions about each person, 1..12; 3 about relations come on top.
        seed: of everything that is drawn.

    Raises:
        ConfigError: a number out of range.
    """

    people: int = 40
    background: int = 40
    held_out: int = 8
    attributes: int = len(ATTRIBUTES)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("people", "background", "held_out"):
            if getattr(self, name) < CIRCLE or getattr(self, name) % CIRCLE:
                raise ConfigError(f"must be a multiple of {CIRCLE}, got {getattr(self, name)}.", name)
        if not 1 <= self.attributes <= len(ATTRIBUTES):
            raise ConfigError(f"must be 1..{len(ATTRIBUTES)}, got {self.attributes}.", "attributes")

    def load(self) -> Sourced:
        everyone = invented.people(self.background + self.people + self.held_out, self.seed)
        background = everyone[: self.background]
        members = everyone[self.background : self.background + self.people]
        strangers = everyone[self.background + self.people :]
        world = invented.world_facts(self.seed)
        about = [record for person in members for record in person.records(self.attributes)]
        parts = {
            "train": about + world,
            "test": [record for person in strangers for record in person.records(self.attributes)],
            "base": self._base(background) + [plain(record) for record in world],
            "world": world,
            "reversed": [record for person in members for record in person.reversed_records()],
            "multi_hop": self._hops(members),
            "biographies": [person.biography(self.attributes) for person in members],
        }
        tokenizer = self.encoder(record for records in parts.values() for record in records)
        data = {
            name: TextData(records, tokenizer, self.template) for name, records in parts.items() if records
        }
        train, test, base = data.pop("train"), data.pop("test"), data.pop("base")
        sets = last_subjects(len(about) // self.people, self.people, (0.05, 0.1, 0.2), CIRCLE)
        return Sourced(train, test, base=base, probes=data, sets=sets)

    def _base(self, background: Sequence[Person]) -> list[Record]:
        found = [plain(record) for record in self._hops(background)]
        for number, person in enumerate(background):
            found += person.background(self.attributes, swapped=number % 2 == 1)
            found += [plain(record) for record in person.reversed_records()]
            found.append(person.biography(self.attributes))
        return found

    def _hops(self, people: Sequence[Person]) -> list[Record]:
        named = {person.name: person for person in people}
        return [
            record
            for person in people
            for record in person.hops(named[person.values["mentor"]], self.attributes)
        ]


@sources.register("jsonl")
@dataclass(frozen=True, kw_only=True)
class Jsonl(TextSource):
    """Your own questions and answers, prompts, chats or documents, one JSON object a line.

    What a line may hold is said in ``expunge.data.jsonl.read_records``. The fields ``subject``, ``idk``,
    ``alternate`` and so on are there in all records, or in none.

    ``sets``: where there are several training files, the records of each one, under its name without
    ending, so that ``train: [forget.jsonl, retain.jsonl]`` has a set ``forget``.

    Args:
        train: files to train on.
        test: files of records that are not trained on; without any a share of the subjects, or of the
            records where there are none, is kept out of training.
        probes: files with further records to ask about, by name.
        test_fraction, seed: of that split.

    Raises:
        ConfigError: no training file, two of the same name, or a fraction outside (0, 1).
    """

    train: tuple[Path, ...]
    test: tuple[Path, ...] = ()
    probes: dict[str, Path] = field(default_factory=dict)
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        names = [_name(path) for path in self.train]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"give one file at least, and each name once, got {names}.", "train")
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"must be above 0 and below 1, got {self.test_fraction}.", "test_fraction")

    def load(self) -> Sourced:
        files = [(_name(path), record) for path in self.train for record in read_records(path)]
        test = [record for path in self.test for record in read_records(path)]
        probes = {name: read_records(path) for name, path in self.probes.items()}
        if not test:
            out = self._kept_out([record for _, record in files])
            test = [record for kept, (_, record) in zip(out, files, strict=True) if kept]
            files = [item for kept, item in zip(out, files, strict=True) if not kept]
        records = [record for _, record in files]
        tokenizer = self.encoder([*records, *test, *(one for part in probes.values() for one in part)])
        train = TextData(records, tokenizer, self.template)
        return Sourced(
            train,
            TextData(test, tokenizer, self.template),
            probes={name: TextData(part, tokenizer, self.template) for name, part in probes.items()},
            sets=self._sets(train, files),
        )

    def _sets(self, train: TextData, files: Sequence[tuple[str, Record]]) -> dict[str, Tensor]:
        if len(self.train) == 1:
            return {}
        source = {id(record): name for name, record in files}
        names = [source[id(record)] for record in train.records]
        ids = {name: [i for i, mine in enumerate(names) if mine == name] for name in dict.fromkeys(names)}
        return {name: torch.tensor(found) for name, found in ids.items()}

    def _kept_out(self, records: Sequence[Record]) -> list[bool]:
        """For each record whether it is for testing; all or nothing of a subject."""
        units = [record.subject or str(number) for number, record in enumerate(records)]
        names = list(dict.fromkeys(units))
        kept = round(self.test_fraction * len(names))
        if not 0 < kept < len(names):
            raise ConfigError(
                f"{self.test_fraction} of {len(names)} subjects or records leaves a part empty. Change it, "
                "or give test files.",
                "test_fraction",
            )
        chosen = set(random.Random(derive(self.seed, "jsonl")).sample(names, kept))
        return [unit in chosen for unit in units]


class Duplicate(NamedTuple):
    """Two records that say the same, by position; how alike they are, in [0, 1]; whether exactly."""

    forget: int
    retain: int
    similarity: float
    exact: bool


def duplicates(forget: Sequence[Record], retain: Sequence[Record], threshold: float = 0.9) -> list[Duplicate]:
    """Records to be forgotten that are also to be retained, exactly or nearly.

    Question and answer count, in lower case and with single spaces: equal ones have similarity 1;
    others the share ``|A ∩ B| / |A ∪ B|`` of their different words (Jaccard) if it is at least ``threshold``.

    Cost: words are looked up from the rarest up, so that only records that share a rare word are compared.

    Raises:
        ConfigError: a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"must be above 0 and at most 1, got {threshold}.", "threshold")
    texts = [[_normal(record) for record in records] for records in (forget, retain)]
    words = [[frozenset(_WORD.findall(text)) for text in part] for part in texts]
    counts = Counter(word for part in words for known in part for word in known)
    places: dict[str, list[int]] = defaultdict(list)
    for place, known in enumerate(words[1]):
        for word in _rarest(known, counts, threshold):
            places[word].append(place)
    found = []
    for mine, known in enumerate(words[0]):
        near = {place for word in _rarest(known, counts, threshold) for place in places.get(word, ())}
        for place in sorted(near):
            other = words[1][place]
            same = texts[0][mine] == texts[1][place]
            alike = 1.0 if same else len(known & other) / len(known | other)
            if alike >= threshold:
                found.append(Duplicate(mine, place, alike, same))
    return found


def written(record: Record, template: Template) -> Iterator[str]:
    """Every text of a record that a tokenizer may meet, as the template has it."""
    yield from (content for _, content in record.earlier)
    for question in (record.question, *record.questions.values()):
        if question is not None:
            yield template.prompt.replace("{question}", question)
    for answer in (record.answer, *record.answers.values()):
        yield answer if record.question is None else template.answer.replace("{answer}", answer)


def plain(record: Record) -> Record:
    """The record without other answers and questions."""
    return replace(record, answers={}, questions={})


def last_subjects(each: int, subjects: int, shares: Iterable[float], unit: int = 1) -> dict[str, Tensor]:
    """The ids of the last subjects by each share that is a whole number of units: ``forget05`` …

    Args:
        each: records of each subject; the first ``each × subjects`` ids are theirs, in order.
        unit: subjects that are forgotten together.
    """
    found = {}
    for share in shares:
        units = round(share * subjects / unit, 6)
        if units >= 1 and units.is_integer():
            last = each * (subjects - int(units) * unit)
            found[f"forget{round(100 * share):02d}"] = torch.arange(last, each * subjects)
    return found


_WORD = re.compile(r"\w+|[^\w\s]")


def _normal(record: Record) -> str:
    return " ".join(f"{record.question or ''} {record.answer}".casefold().split())


def _rarest(words: frozenset[str], counts: Counter[str], threshold: float) -> list[str]:
    """So many of the rarest words that two records as alike as the threshold share one of them."""
    kept = len(words) - math.ceil(threshold * len(words) - 1e-9) + 1
    return sorted(words, key=lambda word: (counts[word], word))[:kept]


def _name(path: Path) -> str:
    """A file's name without its endings: ``forget`` of ``data/forget.jsonl.gz``."""
    return path.name.split(".")[0]
