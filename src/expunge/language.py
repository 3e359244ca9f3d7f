"""From the folder of a language model and files of questions to a folder of one that has forgotten them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge import config
from expunge.api import Unlearned, unlearn
from expunge.data.jsonl import read_records
from expunge.data.language import Duplicate, duplicates
from expunge.data.phrases import REFUSALS
from expunge.data.split import Split
from expunge.data.text import Record, Template, TextData
from expunge.data.tokenizers import check_vocabulary, load_tokenizer
from expunge.errors import ConfigError, DataError
from expunge.methods.base import GradientMethod, Method, methods
from expunge.saved import load, save
from expunge.tasks.causal_lm import CausalLM
from expunge.training.engine import Engine
from expunge.training.session import Callback

CARD = "README.md"


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
    model: str | Path,
    forget: str | Path | Sequence[Record],
    retain: str | Path | Sequence[Record] | None = None,
    *,
    template: Template | None = None,
) -> Request:
    """Reads a folder of Hugging Face and files of records; finds mistakes before anything is trained.

    Args:
        model: a folder that ``save_pretrained`` wrote, with its tokenizer, or one of ``expunge.save``.
        forget, retain: files with one JSON object a line (see ``expunge.data.jsonl``), or records.
        template: how a question becomes a prompt; by default the tokenizer's chat template where it has one.

    Forget records without an ``idk`` answer are given a refusal of ours, the same for the same position.

    Raises:
        DataError: a malformed file, a record longer than the model's context, a record that is in both
            files, a tokenizer without an end-of-text token or of another vocabulary.
        CheckpointError: the model cannot be read.
    """
    folder = Path(model)
    tokenizer, loaded = load_tokenizer(folder), load(folder)
    vocabulary = int(loaded.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    check_vocabulary(tokenizer, vocabulary)
    first, other = _records(forget), [] if retain is None else _records(retain)
    near = _overlap(first, other)
    lacking = [number for number, record in enumerate(first) if "idk" not in record.answers]
    for number in lacking:
        answers = {**first[number].answers, "idk": REFUSALS[number % len(REFUSALS)]}
        first[number] = replace(first[number], answers=answers)
    chosen = template or Template()
    if chosen.max_length is None:
        chosen = replace(chosen, max_length=_context(loaded))
    data = TextData([*first, *other], tokenizer, chosen)
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
    if not asked.kept and not _forgets_alone(chosen):
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


def _records(source: str | Path | Sequence[Record]) -> list[Record]:
    return read_records(Path(source)) if isinstance(source, (str, Path)) else list(source)


def _overlap(first: Sequence[Record], other: Sequence[Record]) -> list[Duplicate]:
    """Pairs that are nearly equal.

    Raises:
        DataError: a record is in both.
    """
    found = duplicates(first, other) if other else []
    exact = [pair for pair in found if pair.exact]
    if exact:
        pair = exact[0]
        raise DataError(
            f"{len(exact)} records are both to be forgotten and to be kept; the first is record "
            f"{pair.forget} of the one and {pair.retain} of the other. Take them out of one."
        )
    return found


def _context(model: nn.Module) -> int | None:
    found = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return int(found) if found else None


def _forgets_alone(method: Method) -> bool:
    return (
        isinstance(method, GradientMethod)
        and not method.modifiers
        and all(one.over == "forget" and one.beside is None for one in method.passes(0))
    )
