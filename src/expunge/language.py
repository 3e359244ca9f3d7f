"""Folders of language models and files of questions: made to forget them, judged, and asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge import config, foreign
from expunge.api import Unlearned, unlearn
from expunge.data.arrays import Data
from expunge.data.hub import local
from expunge.data.jsonl import read_records
from expunge.data.language import Duplicate, duplicates
from expunge.data.phrases import REFUSALS
from expunge.data.split import Split
from expunge.data.text import Record, Template, TextData
from expunge.data.tokenizers import check_vocabulary, load_tokenizer
from expunge.errors import ConfigError, DataError
from expunge.evaluation.attacks.text_membership import TextMembership
from expunge.evaluation.generation import GREEDY, Decoding, answers
from expunge.evaluation.metric import Metric
from expunge.evaluation.metrics.distance import AverageGap
from expunge.evaluation.metrics.language import (
    AnswerProbability,
    ExactMemorisation,
    ExtractionStrength,
    Rouge,
)
from expunge.evaluation.metrics.leakage import Leakage
from expunge.evaluation.metrics.tofu import TruthRatio
from expunge.evaluation.metrics.utility import Accuracy, Loss
from expunge.evaluation.report import Report
from expunge.methods.base import Method, methods
from expunge.saved import load, save
from expunge.tasks.causal_lm import CausalLM
from expunge.training.engine import Engine
from expunge.training.session import Callback

CARD = "README.md"

Source = str | Path | Sequence[Record]
"""A file with one JSON object a line (see ``expunge.data.jsonl``), or records."""

Folder = str | Path
"""One that ``save_pretrained`` or ``expunge.save`` wrote, with its tokenizer, or a Hub id."""

UNSAID = "?"
"""Stands for the answer of a question that comes without one; no model sees it."""


@dataclass(frozen=True)
class Request:
    """A language model and what it is to forget and to keep.

    Attributes:
        folder: where the model came from.
        model: in evaluation mode; never changed.
        tokenizer: its own.
        split: forget and retain; retain is forget itself where ``kept`` is false.
        task: for the model's vocabulary.
        kept: whether there is anything to retain.
        near: pairs of records in both that are nearly the same.
        refusals: how many forget records were given a refusal of ours as their ``idk`` answer.
    """

    folder: Path
    model: nn.Module
    tokenizer: Any
    split: Split
    task: CausalLM
    kept: bool
    near: tuple[Duplicate, ...] = ()
    refusals: int = 0

    @property
    def forget(self) -> TextData:
        assert isinstance(self.split.forget, TextData)
        return self.split.forget


def request(
    model: Folder,
    forget: Source,
    retain: Source | None = None,
    *,
    template: Template | None = None,
) -> Request:
    """Reads a folder of Hugging Face and files of records; finds mistakes before anything is trained.

    Args:
        model: its folder.
        forget, retain: files with one JSON object a line (see ``expunge.data.jsonl``), or records.
        template: how a question becomes a prompt; by default the tokenizer's chat template where it has one.

    Forget records without an ``idk`` answer are given a refusal of ours, the same for the same position.

    Raises:
        DataError: a malformed file, a record longer than the model's context, a record that is in both
            files, a tokenizer without an end-of-text token or of another vocabulary.
        CheckpointError: the model cannot be read.
    """
    folder = Path(model)
    tokenizer, loaded = _read(folder)
    vocabulary = _vocabulary(loaded)
    first, other = _records(forget), [] if retain is None else _records(retain)
    near = _overlap(first, other)
    lacking = [number for number, record in enumerate(first) if "idk" not in record.answers]
    for number in lacking:
        answers = {**first[number].answers, "idk": REFUSALS[number % len(REFUSALS)]}
        first[number] = replace(first[number], answers=answers)
    data = TextData([*first, *other], tokenizer, _fitted(template, loaded))
    mine = {id(record) for record in first}
    which = torch.tensor([id(record) in mine for record in data.records])
    task = CausalLM(vocabulary)
    task.check(data, "forget and retain")
    split = Split.from_ids(data, which.nonzero()[:, 0]) if other else Split(data, data)
    return Request(folder, loaded, tokenizer, split, task, bool(other), tuple(near), len(lacking))


def forget(
    asked: Request,
    method: str | Mapping[str, Any] | Method,
    *,
    seed: int = 0,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
) -> Unlearned:
    """A model that has forgotten; ``expunge.unlearn`` on what ``request`` read.

    Raises:
        ConfigError: an unknown method or field, or one that needs what is to be retained.
        Unsupported, Diverged: as ``expunge.unlearn``.
    """
    chosen = config.build(methods, method, "method")
    if not asked.kept and "retain" in chosen.reads_inputs():
        raise ConfigError(
            f"{methods.name_of(chosen)} needs records to keep. Give --retain FILE, or use grad_ascent."
        )
    return unlearn(
        asked.model, asked.split, chosen, task=asked.task, seed=seed, engine=engine, callbacks=callbacks
    )


def write(result: Unlearned, asked: Request, folder: str | Path) -> None:
    """Writes the model, its tokenizer and a card into a folder that ``from_pretrained`` reads.

    Raises:
        RunError: the folder cannot be written.
    """
    save(result.model, folder, asked.tokenizer)
    (Path(folder) / CARD).write_text(card(result, asked), encoding="utf-8")


def card(result: Unlearned, asked: Request) -> str:
    """What was done, in Markdown: the model's card."""
    method, data = methods.name_of(result.method), asked.forget
    subjects = sorted({r.subject for r in (data.record(int(i)) for i in data.ids) if r.subject})
    about = f" about {len(subjects)} subjects" if subjects else ""
    kept = f"{len(asked.split.retain)} records were kept" if asked.kept else "no records to keep were given"
    settings = "\n".join(f"- `{key}`: {value}" for key, value in config.dump(result.method).items())
    return (
        f"# {asked.folder.name}, after unlearning\n\n"
        f"`{method}` was asked to forget {len(data)} records{about}; {kept}. Seed {result.session.seed}, "
        f"{result.cost['seconds']:.1f} seconds.\n\n"
        "This card says what was done, not that it worked: `expunge evaluate` compares the model with ones "
        "that never saw the records.\n\n"
        f"## Settings\n\n{settings}\n"
    )


def judge(
    original: Folder,
    unlearned: Folder | Sequence[Folder] | Mapping[str, Folder],
    retrained: Folder | Sequence[Folder] = (),
    *,
    forget: Source,
    retain: Source,
    test: Source | None = None,
    template: Template | None = None,
    metrics: Sequence[str | Mapping[str, Any] | Metric] | None = None,
    controls: Sequence[str] = (),
    margins: Mapping[str, float] | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
    name: str = "evaluation",
) -> Report:
    """A report on folders of language models; guarded ones under their guard. None of them is changed.

    Without retrained models nothing can be said about forgetting: there are values but no verdicts.

    Args:
        original, unlearned: before and after: one folder, several, or several by name.
        retrained: trained without the forget records; with fewer than 3 hardly any verdict can be reached.
        forget, retain, test: what was to be forgotten, what to be kept, and records that no model was
            trained on: files or records.
        template: as in ``request``; the same for all models.
        metrics: by default those of ``measured``.
        controls, margins: as in ``expunge.evaluate``.

    Raises:
        ConfigError, DataError, CheckpointError: what cannot be read or does not fit, as in ``request``; a
            model with other tokens than the original; records of the test that are to be forgotten.
    """
    asked = request(original, forget, retain, template=template)
    split, first = asked.split, _records(forget)
    if test is not None:
        unseen = _records(test)
        _overlap(first, unseen, "unseen")
        data = TextData(unseen, asked.tokenizer, asked.forget.template)
        asked.task.check(data, "test")
        split = replace(split, test=data)
    several = [retrained] if isinstance(retrained, (str, Path)) else retrained
    given = unlearned if isinstance(unlearned, Mapping) else foreign.named(unlearned)
    return foreign.audit(
        asked.model,
        {label: _beside(str(folder), asked) for label, folder in given.items()},
        split=split,
        retrained=[_beside(folder, asked) for folder in several],
        task=asked.task,
        metrics=measured(split) if metrics is None else metrics,
        controls=controls,
        margins=margins,
        seed=seed,
        engine=engine,
        callbacks=callbacks,
        name=name,
    )


def measured(split: Split) -> list[Metric]:
    """What is measured of a split of text when nothing else is asked for.

    How likely the answers are and how many of their tokens the models get right, on all parts; what they
    write to forget and retain questions; what they know by heart, tell, or complete of the forget records;
    truth ratios where records bring wrong answers; and, with test records, membership and the average gap.
    """
    parts = split.parts()
    asking = [
        part for part in ("forget", "retain") if _all(parts[part], lambda one: one.question is not None)
    ]
    wrong = [part for part in parts if _all(parts[part], lambda one: "perturbed_1" in one.answers)]
    found: list[Metric] = [Accuracy(part=part) for part in parts]  # type: ignore[arg-type]
    found += [AnswerProbability(part=part) for part in parts]
    found += [Rouge(part=part) for part in asking]
    found += [Leakage()] * ("forget" in asking) + [ExtractionStrength(), ExactMemorisation()]
    for part in wrong:
        found.append(TruthRatio(part=part, read="closeness" if part == "forget" else "truthfulness"))
    if "test" in parts:
        found += [TextMembership(), TextMembership(score="min_k"), AverageGap()]
    return [*found, *(Loss(part=part) for part in parts)]  # type: ignore[arg-type]


def ask(
    models: Sequence[Folder],
    questions: Sequence[str | Record],
    *,
    decoding: Decoding = GREEDY,
    template: Template | None = None,
    seed: int = 0,
    engine: Engine | None = None,
) -> dict[str, list[list[str]]]:
    """What each model writes: by its folder, for each question ``decoding.samples`` answers.

    Every model has its own tokenizer and chat template, and its guard where it has one. One is in memory at
    a time.

    Raises:
        DataError: a record that asks nothing, a question longer than a model's context, a tokenizer that is
            not the model's.
        CheckpointError: a model cannot be read.
    """
    records = [Record(answer=UNSAID, question=one) if isinstance(one, str) else one for one in questions]
    for number, record in enumerate(records):
        if not (record.question or "").strip():
            raise DataError(f"question {number + 1} of {len(records)} is empty or a document. Ask something.")
    posed = [Record(answer=UNSAID, question=one.question, earlier=one.earlier) for one in records]
    found: dict[str, list[list[str]]] = {}
    for folder in models:
        tokenizer, model = _read(Path(folder))
        data = TextData(posed, tokenizer, _fitted(template, model))
        found[str(folder)] = answers(model, data, engine or Engine(), decoding, seed)
    return found


def _read(folder: Path) -> tuple[Any, nn.Module]:
    """Tokenizer and model of a folder, which belong together."""
    tokenizer, model = load_tokenizer(folder), load(folder)
    check_vocabulary(tokenizer, _vocabulary(model))
    return tokenizer, model


def _beside(folder: Folder, asked: Request) -> nn.Module:
    """A model that reads the same tokens as the original.

    Raises:
        DataError: it does not.
    """
    model = load(folder)
    mine, theirs = _vocabulary(model), asked.task.vocabulary
    if mine != theirs:
        raise DataError(
            f"'{folder}' has {mine:,} tokens and '{asked.folder}' {theirs:,}. Only models of one vocabulary "
            "can be compared."
        )
    there = (local(folder) / "tokenizer_config.json").exists()
    if there and load_tokenizer(folder).get_vocab() != asked.tokenizer.get_vocab():
        raise DataError(
            f"'{folder}' and '{asked.folder}' have tokenizers that differ. Only models of one tokenizer can "
            "be compared."
        )
    return model


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _fitted(template: Template | None, model: nn.Module) -> Template:
    """The template, with the model's context as its length where it has none."""
    chosen = template or Template()
    return chosen if chosen.max_length is not None else replace(chosen, max_length=_context(model))


def _all(data: Data, holds: Callable[[Record], bool]) -> bool:
    assert isinstance(data, TextData)
    return all(holds(data.record(int(id_))) for id_ in data.ids)


def _records(source: Source) -> list[Record]:
    return read_records(Path(source)) if isinstance(source, (str, Path)) else list(source)


def _overlap(first: Sequence[Record], other: Sequence[Record], use: str = "to be kept") -> list[Duplicate]:
    """Pairs that are nearly equal.

    Raises:
        DataError: a record is in both.
    """
    found = duplicates(first, other) if other else []
    exact = [pair for pair in found if pair.exact]
    if exact:
        pair = exact[0]
        more = "" if len(exact) < 2 else f" ({_listed(exact[1:])})"
        raise DataError(
            f"{len(exact)} records are both to be forgotten and {use}; the first is record "
            f"{pair.forget} of the one and {pair.retain} of the other{more}. Take them out of one."
        )
    return found


def _listed(pairs: Sequence[Duplicate], most: int = 5) -> str:
    """The first of some pairs, and how many there are besides."""
    shown = ", ".join(f"{pair.forget} and {pair.retain}" for pair in pairs[:most])
    return shown if len(pairs) <= most else f"{shown} and {len(pairs) - most:,} more"


def _context(model: nn.Module) -> int | None:
    found = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return int(found) if found else None
