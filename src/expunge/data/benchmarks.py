"""Published data sets for unlearning in language models, in the layout of their authors' files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from expunge.data.download import local_folder
from expunge.data.jsonl import lines, objects
from expunge.data.language import TextSource, last_subjects, plain
from expunge.data.source import Sourced, sources
from expunge.data.text import Record, TextData
from expunge.errors import ConfigError, DataError
from expunge.seeding import derive

QUESTIONS, AUTHORS, WITH_WRONG = 20, 200, 20
"""Of TOFU: questions an author, authors, and how many at each end have perturbed answers."""


@sources.register("tofu")
@dataclass(frozen=True, kw_only=True)
class Tofu(TextSource):
    """TOFU (Maini et al., 2024): 200 invented authors with 20 questions each.

    The author's number, ``author 000`` … ``author 199``, is the subject. Every record has a refusal
    ``idk``; the first and last 20 authors also have ``paraphrased`` and ``perturbed_1`` … ``perturbed_5``
    answers and a ``paraphrased_question``. The training data holds these where all of its authors have
    them (up to ``authors=40``). They are in the probes ``forget_perturbed`` (last authors) and
    ``retain_perturbed`` (first authors) in any case. The probes ``real_authors`` and ``world_facts`` have
    three perturbed answers. ``sets``: ``forget01``, ``forget05`` and ``forget10``, the last authors by that
    share where it is a whole number of authors; with all 200 they are the published ones.

    ``test`` are ``held_out`` authors, non-members from the same distribution, or, without any, the world
    facts, which differ from the authors in every respect: no set for membership attacks.

    ``base``, for models that begin with random weights: ``background`` authors, the real authors and the
    world facts. What a pretrained model would have known before it heard of the 200 authors.

    Args:
        path: the folder with ``full.json`` and the other files; without it ``$EXPUNGE_DATA/tofu``.
        authors: the first and the last half of so many; even, all that are left by default.
        held_out: authors kept out of training, those after the first half.
        background: authors of the base, those after the ones held out.
        seed: of the refusals.

    Raises:
        ConfigError: authors that are not even, or more than 200 with those held out and of the base.
    """

    tokens: Literal["word", "bpe"] = "bpe"
    vocabulary: int | None = 4096
    path: Path | None = None
    authors: int | None = None
    held_out: int = 0
    background: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("held_out", "background"):
            if getattr(self, name) < 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)
        count, left = self._count, AUTHORS - self.held_out - self.background
        if count < 2 or count % 2 or count > left:
            raise ConfigError(
                f"must be even, 2..{left} beside {self.held_out} held out and {self.background} of the base, "
                f"got {count}.",
                "authors",
            )

    @property
    def _count(self) -> int:
        return AUTHORS - self.held_out - self.background if self.authors is None else self.authors

    def load(self) -> Sourced:
        folder, half = _folder("tofu", self.path, "full.json"), self._count // 2
        refusals = [text for _, text in lines(folder / "idontknow.jsonl")]
        authors = self._authors(folder, refusals)
        first, between, last = authors[:half], authors[half : AUTHORS - half], authors[AUTHORS - half :]
        train = _joined([*first, *last])
        if any(record.answers.keys() == {"idk"} for record in train):
            train = [_only_refusal(record) for record in train]
        parts = {
            "train": train,
            "held_out": [_only_refusal(one) for one in _joined(between[: self.held_out])],
            "base": _joined(between[self.held_out : self.held_out + self.background]),
            "forget_perturbed": _joined(last[-WITH_WRONG:]),
            "retain_perturbed": _joined(first[:WITH_WRONG]),
            "real_authors": self._closed(folder / "real_authors_perturbed.json", refusals),
            "world_facts": self._closed(folder / "world_facts_perturbed.json", refusals),
        }
        if self.background:
            told = [record for name in ("base", "real_authors", "world_facts") for record in parts[name]]
            parts["base"] = [replace(plain(record), subject=None) for record in told]
        tokenizer = self.encoder(_joined(parts.values()))
        data = {name: TextData(part, tokenizer, self.template) for name, part in parts.items() if part}
        test = data.pop("held_out", data["world_facts"])
        sets = last_subjects(QUESTIONS, self._count, (0.01, 0.05, 0.1))
        return Sourced(data.pop("train"), test, base=data.pop("base", None), probes=data, sets=sets)

    def _authors(self, folder: Path, refusals: Sequence[str]) -> list[list[Record]]:
        """Every author's records, with the other answers that they have."""
        rows = _rows(folder / "full.json", "question", "answer")
        if len(rows) != QUESTIONS * AUTHORS:
            raise DataError(
                f"'{folder / 'full.json'}' has {len(rows):,} records, expected {QUESTIONS * AUTHORS:,}. "
                "Copy it again."
            )
        names = ("question", "answer", "paraphrased_answer", "paraphrased_question")
        more = {
            (row["question"], row["answer"]): row
            for file in ("retain_perturbed.json", "forget10_perturbed.json")
            for row in _rows(folder / file, *names)
        }
        records = []
        for number, row in enumerate(rows):
            record = self._record(row, refusals, subject=f"author {number // QUESTIONS:03d}")
            other = more.get((record.question or "", record.answer))
            records.append(record if other is None else self._record(other, refusals, record.subject))
        return [records[start : start + QUESTIONS] for start in range(0, len(records), QUESTIONS)]

    def _closed(self, path: Path, refusals: Sequence[str]) -> list[Record]:
        return [self._record(row, refusals) for row in _rows(path, "question", "answer")]

    def _record(self, row: Mapping[str, Any], refusals: Sequence[str], subject: str | None = None) -> Record:
        answers = {"idk": refusals[derive(self.seed, "tofu", row["question"]) % len(refusals)]}
        if "paraphrased_answer" in row:
            answers["paraphrased"] = row["paraphrased_answer"]
        for number, text in enumerate(row.get("perturbed_answer", ()), 1):
            answers[f"perturbed_{number}"] = text
        asked = "paraphrased_question"
        return Record(
            question=row["question"],
            answer=row["answer"],
            subject=subject,
            answers=answers,
            questions={asked: row[asked]} if asked in row else {},
        )


@sources.register("muse")
@dataclass(frozen=True, kw_only=True)
class Muse(TextSource):
    """MUSE News (Shi et al., 2024): news articles to forget, and questions about them.

    Trained on are the articles to forget (set ``forget``) and passages to retain; ``test`` are passages
    of the same kind that are never seen. Each is its own subject. Probes: ``knowledge_forget`` and
    ``knowledge_retain`` (questions), ``verbatim`` (an article's beginning as it stands, without the
    template, and how it goes on) and ``members`` (passages of the forgotten articles, for membership
    attacks against ``test``). The published retain corpus is not among the files: the passages of the
    membership test serve instead. ``template.max_length`` cuts articles, not the probes.

    Args:
        path: the folder with ``knowmem``, ``verbmem``, ``privleak`` and ``raw``; without it
            ``$EXPUNGE_DATA/muse-news``.
        documents: the first so many of each kind of text; all by default.

    Raises:
        ConfigError: fewer than one document.
    """

    tokens: Literal["word", "bpe"] = "bpe"
    vocabulary: int | None = 4096
    path: Path | None = None
    documents: int | None = None

    def __post_init__(self) -> None:
        if self.documents is not None and self.documents < 1:
            raise ConfigError(f"must be at least 1, got {self.documents}.", "documents")

    def load(self) -> Sourced:
        folder = _folder("muse-news", self.path, "knowmem/forget_qa.json")
        forget = self._passages(folder, "raw/forget", "article")
        retain = self._passages(folder, "privleak/retain2", "retained")
        holdout = self._passages(folder, "privleak/holdout", "unseen")
        members = self._passages(folder, "privleak/forget", "member")
        asked = {
            f"knowledge_{part}": self._pairs(folder, f"knowmem/{file}", "question", "answer")
            for part, file in (("forget", "forget_qa"), ("retain", "retain2_qa"))
        }
        verbatim = self._pairs(folder, "verbmem/forget", "prompt", "gt")
        tokenizer = self.encoder(_joined([forget, retain, holdout, members, *asked.values(), verbatim]))
        whole = replace(self.template, max_length=None)
        probes = {name: TextData(records, tokenizer, whole) for name, records in asked.items()}
        as_it_stands = replace(whole, prompt="{question}", answer="{answer}", chat=False)
        probes["verbatim"] = TextData(verbatim, tokenizer, as_it_stands)
        probes["members"] = TextData(members, tokenizer, self.template)
        train = TextData([*forget, *retain], tokenizer, self.template)
        about = {record.subject for record in forget}
        ids = [i for i, record in enumerate(train.records) if record.subject in about]
        test = TextData(holdout, tokenizer, self.template)
        return Sourced(train, test, probes=probes, sets={"forget": torch.tensor(ids)})

    def _passages(self, folder: Path, file: str, kind: str) -> list[Record]:
        texts = _array(folder, file)[: self.documents]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"'{folder / file}' is no list of texts. Copy the file again.")
        return [Record(answer=text, subject=f"{kind} {i:03d}") for i, text in enumerate(texts)]

    def _pairs(self, folder: Path, file: str, question: str, answer: str) -> list[Record]:
        rows = _array(folder, file)[: self.documents]
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or not all(isinstance(row.get(n), str) for n in (question, answer)):
                raise DataError(
                    f"'{folder / file}', item {number} lacks {question} or {answer}. Copy the file again."
                )
        return [Record(question=row[question], answer=row[answer]) for row in rows]


ATTACKS = (
    "prefix injection",
    "affirmative suffix",
    "role play",
    "multiple choice",
    "reverse query",
    "synonym manipulation",
    "context hint",
    "incontext learning",
    "cross lingual",
)
"""The types of RWKU's adversarial questions, as its files call them; ``cross lingual`` in any language."""


def of_attack(kind: str) -> str:
    """The probe of the data ``rwku`` that holds the adversarial questions of one of ``ATTACKS``."""
    return f"forget_level3_{kind.replace(' ', '_')}"


@sources.register("rwku")
@dataclass(frozen=True, kw_only=True)
class Rwku(TextSource):
    """RWKU (Jin et al., 2024): 200 famous people whom pretrained models know, and their neighbourhood.

    ``train`` are passages about the targets (set ``forget``, the target is the subject) and about people
    around them (the subject is ``near`` the target). Probes: ``forget_level1`` (cloze), ``forget_level2``
    (questions), ``forget_level3`` (attacks), ``neighbor_level1`` and ``neighbor_level2``, all with the target
    as subject; and of the attacks each type by itself: ``forget_level3_prefix_injection`` and the others of
    ``ATTACKS`` that the targets have. ``test`` is ``neighbor_level2``: there are no unseen passages, so that
    no membership attack against ``test`` means anything; the published one compares the two kinds of
    passages.

    Args:
        path: the folder with ``forget_level1.jsonl.gz`` and the others; without it ``$EXPUNGE_DATA/rwku``.
        targets: the first so many of the 200.

    Raises:
        ConfigError: fewer than one target or more than 200.
    """

    tokens: Literal["word", "bpe"] = "bpe"
    vocabulary: int | None = 4096
    path: Path | None = None
    targets: int = 200

    def __post_init__(self) -> None:
        if not 1 <= self.targets <= 200:
            raise ConfigError(f"must be 1..200, got {self.targets}.", "targets")

    def load(self) -> Sourced:
        folder = _folder("rwku", self.path, "forget_level1.jsonl.gz")
        forget, near = (self._chosen(folder, f"{part}_mia", "text") for part in ("forget", "retain"))
        passages = [Record(answer=row["text"], subject=row["subject"]) for row in forget]
        passages += [Record(answer=row["text"], subject=f"near {row['subject']}") for row in near]
        names = [f"forget_level{level}" for level in (1, 2, 3)] + ["neighbor_level1", "neighbor_level2"]
        asked = {
            name: [
                Record(question=row["query"], answer=row["answer"], subject=row["subject"])
                for row in self._chosen(folder, name, "query", "answer")
            ]
            for name in names
        }
        tokenizer = self.encoder(_joined([passages, *asked.values()]))
        whole = replace(self.template, max_length=None)
        probes = {name: TextData(records, tokenizer, whole) for name, records in asked.items()}
        probes |= self._by_attack(folder, probes["forget_level3"])
        train = TextData(passages, tokenizer, self.template)
        ids = [i for i, one in enumerate(train.records) if not (one.subject or "").startswith("near ")]
        return Sourced(train, probes["neighbor_level2"], probes=probes, sets={"forget": torch.tensor(ids)})

    def _by_attack(self, folder: Path, attacks: TextData) -> dict[str, TextData]:
        """The adversarial questions of each type that there is, as subsets of all of them."""
        ids: dict[str, list[int]] = {kind: [] for kind in ATTACKS}
        for number, row in enumerate(self._chosen(folder, "forget_level3", "type")):
            kind = row["type"].replace("-", " ").split(" (")[0]  # "cross-lingual (French)"
            if kind not in ids:
                raise DataError(
                    f"'{folder / 'forget_level3.jsonl.gz'}' has a question of the type '{row['type']}', "
                    f"which is none of {', '.join(ATTACKS)}. Copy the file again."
                )
            ids[kind].append(number)
        return {of_attack(kind): attacks.subset(found) for kind, found in ids.items() if found}

    def _chosen(self, folder: Path, file: str, *names: str) -> list[dict[str, Any]]:
        path = folder / f"{file}.jsonl.gz"
        rows = _rows(path, "subject", *names)
        if not all(isinstance(row.get("target_id"), int) for row in rows):
            raise DataError(f"'{path}' has records without a number target_id. Copy the file again.")
        return [row for row in rows if row["target_id"] <= self.targets]


def _array(folder: Path, file: str) -> list[Any]:
    """The JSON array in ``<file>.json`` or ``<file>.json.gz``."""
    path = next(
        (found for end in (".json", ".json.gz") if (found := folder / f"{file}{end}").is_file()), None
    )
    if path is None:
        raise DataError(f"'{folder}' holds no {file}.json. Copy the data set again.")
    try:
        found = json.loads("\n".join(text for _, text in lines(path)))
    except json.JSONDecodeError as error:
        raise DataError(f"'{path}' is not JSON: {error.msg}. Copy the file again.") from None
    if not isinstance(found, list) or not found:
        raise DataError(f"'{path}' is no JSON array, or an empty one. Copy the file again.")
    return found


def _folder(name: str, path: Path | None, file: str) -> Path:
    """The folder of a published data set: the given one, or ``$EXPUNGE_DATA/<name>``."""
    found = path or local_folder(name)
    if found is None or not (found / file).is_file():
        where = "on this machine" if found is None else f"in '{found}': it holds no {file}"
        raise DataError(
            f"{name} is not {where}. Set EXPUNGE_DATA to a folder that holds {name}/, or path to the folder "
            f"with {file}."
        )
    return found


def _rows(path: Path, *names: str) -> list[dict[str, Any]]:
    """The objects of a published file, all of which have texts of these names.

    Raises:
        DataError: a line that is no object, or one without such a text.
    """
    found = []
    for line, row in objects(path):
        for name in names:
            if not isinstance(row.get(name), str):
                raise DataError(
                    f"'{path}', line {line}: field '{name}' is missing or no text. Copy the file again."
                )
        found.append(row)
    return found


def _joined(groups: Iterable[Sequence[Record]]) -> list[Record]:
    return [record for group in groups for record in group]


def _only_refusal(record: Record) -> Record:
    return replace(plain(record), answers={"idk": record.answers["idk"]})
