"""``expunge ask``."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.errors import ConfigError

if TYPE_CHECKING:
    from expunge.data.text import Record

EXAMPLE = 'expunge ask --model my-model --model forgotten "Where does Ada live?"'

TRUTH = "true answer"


def command(
    model: Annotated[
        list[str],
        typer.Option(metavar="FOLDER", help="A language model with its tokenizer; repeat to compare."),
    ],
    question: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION", help="Each in quotes.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Records (.jsonl); their true answers are shown beside the models'."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token each time; above, tokens are drawn.")
    ] = 0.0,
    samples: Annotated[
        int, typer.Option(help="Answers to each question; more than one needs a temperature.")
    ] = 1,
    max_tokens: Annotated[int, typer.Option(help="Where an answer ends at the latest.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the tokens that are drawn.")] = 0,
    device: Annotated[str | None, typer.Option("--engine.device", help="auto, cpu, cuda, …")] = None,
    dtype: Annotated[str | None, typer.Option("--engine.dtype", help="float32 or bfloat16.")] = None,
) -> None:
    """Asks language models the same questions and shows their answers one below the other.

    A FOLDER is what save_pretrained or `expunge unlearn` wrote. Questions go through the tokenizer's chat
    template where it has one, else as "Question: …" and "Answer:". A guarded model answers under its guard.

    A single greedy answer that is wrong does not show that a model has forgotten: what is left often comes
    back when several are drawn, as with --temperature 1 --samples 10. Whether it has forgotten is for
    `expunge evaluate` to say.
    """
    from expunge import config, language
    from expunge.data.jsonl import read_records
    from expunge.data.text import Record
    from expunge.evaluation.generation import Decoding
    from expunge.training.engine import Engine

    records = [Record(answer=language.UNSAID, question=one) for one in question or ()]
    known = read_records(file) if file is not None else []
    if not records and not known:
        raise ConfigError("there is nothing to ask. Give a question in quotes, or --file FILE with records.")
    engine = {key: value for key, value in (("dtype", dtype), ("device", device)) if value}
    found = language.ask(
        list(dict.fromkeys(model)),
        [*records, *known],
        decoding=Decoding(max_tokens=max_tokens, temperature=temperature, samples=samples),
        seed=seed,
        engine=config.parse(Engine, engine, "engine"),
    )
    for place, record in enumerate([*records, *known]):
        answers = {TRUTH: [record.answer]} if place >= len(records) else {}
        answers |= {name: written[place] for name, written in found.items()}
        print("\n".join(_block(record, answers)) + "\n")


def _block(record: Record, answers: dict[str, list[str]]) -> Iterator[str]:
    """A question, and under it a line for each answer."""
    width = max(map(len, answers))
    for role, content in record.earlier:
        yield from _wrapped(f"{role}: ", content)
    yield from _wrapped("Q: ", record.question or "")
    for name, texts in answers.items():
        for number, text in enumerate(texts):
            yield from _wrapped(f"  {'' if number else name:<{width}}  ", text or "(nothing)")


def _wrapped(before: str, text: str) -> Sequence[str]:
    """A text behind its label, on a terminal wrapped to its width."""
    room = shutil.get_terminal_size().columns - len(before) if sys.stdout.isatty() else 0
    lines = [
        piece for line in text.splitlines() for piece in (textwrap.wrap(line, room) if room > 20 else [line])
    ]
    return [(before if number == 0 else " " * len(before)) + line for number, line in enumerate(lines)]
