"""``expunge validate``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from expunge.cli.arguments import Settings, Source
from expunge.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from expunge.data.arrays import Data
    from expunge.data.captions import CaptionedImages
    from expunge.data.source import Sourced
    from expunge.data.split import Split
    from expunge.experiment import Experiment

SHOWN = 2
"""Pairs of near duplicates that are listed for each forget set; their number follows."""

EXAMPLE = "expunge validate my_experiment.yaml train.epochs=100"


def command(experiment: Source, settings: Settings = None) -> None:
    """Finds the mistakes in an experiment without training anything, and says what would run.

    Loads the data, builds the model, and tries every method on a handful of examples. Exit code 0 means that
    `expunge run` with the same arguments will not stop because of a mistake in them. Of text and of captioned
    images one example is shown as the model sees it, and records to forget that are nearly the same as
    others that stay.
    """
    from expunge.cli.output import warn
    from expunge.experiment import check, read

    parsed = read(experiment, settings or ())
    check(parsed)
    warn(parsed.engine)
    for line in list(_plan(parsed)):  # whole: it may find a mistake
        print(line)


def _text(data: Data, model: nn.Module) -> Iterator[str]:
    """One example of text as the model sees it.

    Raises:
        DataError: the tokenizer is not the model's.
    """
    from expunge.data.text import TextData
    from expunge.data.tokenizers import check_vocabulary

    if not isinstance(data, TextData):
        return
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    if embedding is not None:
        check_vocabulary(data.tokenizer, embedding.weight.shape[0])
    yield "  text      the first example, as the model sees it:"
    yield from (f"    {line}" for line in data.shown(int(data.ids[0])).splitlines())


def _picture(sourced: Sourced, experiment: Experiment, model: nn.Module) -> Iterator[str]:
    """One example of an image to be drawn, with its caption or class, as the model sees it."""
    from expunge.data.captions import CaptionedImages
    from expunge.data.vision_text import VisionTextData
    from expunge.tasks.diffusion import Diffusion

    data = sourced.train
    if isinstance(data, VisionTextData):
        channels, height, width = data.pictures.shape[1:]
        yield (
            f"    picture: {channels} × {height} × {width}, {data.image_tokens} times the token "
            f"'{data.image_token}' of the prompt"
        )
    if not isinstance(experiment.task, Diffusion) or data.column("inputs").ndim != 4:
        return
    first = data.subset(data.ids[:1])
    yield "  picture   the first example, as the model sees it:"
    if sourced.image_shape is not None:
        yield f"    image: {' × '.join(map(str, sourced.image_shape))}"
    wanted, found = (getattr(model, "latent_shape", None), tuple(first.column("inputs").shape[1:]))
    if wanted is not None and tuple(wanted) != found:
        raise DataError(
            f"examples are {found}, but the model works on {tuple(wanted)}. Give both the same size and "
            "codec."
        )
    if not isinstance(data, CaptionedImages):
        yield f"    inputs: {' × '.join(map(str, found))}"
        if experiment.task.conditions is not None:
            number = int(first.column("targets")[0])
            yield f"    class: {number} ({(sourced.class_names or {number: 'no name'})[number]})"
        return
    yield from (f"    {line}" for line in data.shown(int(first.ids[0])).splitlines())
    yield from _read_as(data, experiment.task.dropout)


def _read_as(data: CaptionedImages, dropout: Mapping[str, float]) -> Iterator[str]:
    """What of a caption is no word of its own, and what takes its place in training."""
    caption, tokenizer = data.captions[0], data.tokenizer
    split = {word: tokenizer.tokenize(word) for word in caption.split()}
    if pieces := {word: parts for word, parts in split.items() if len(parts) > 1}:
        yield "    words in pieces: " + "; ".join(f"{word} = {' '.join(p)}" for word, p in pieces.items())
    length = int(data.column("input_ids").shape[1])
    used = len(tokenizer(caption)["input_ids"])
    yield f"    padding: {length - used} of {length} tokens; nothing is masked, the model reads them too"
    if dropout:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in dropout.items())
        yield f"    in training another caption takes its place: {shares}"


def _near(split: Split) -> Iterator[str]:
    """Pairs of a record to forget and one that stays that are nearly the same; pieces of one are not."""
    from expunge.data.language import duplicates
    from expunge.data.text import TextData

    forget, retain = split.forget, split.retain
    if not (isinstance(forget, TextData) and isinstance(retain, TextData)):
        return
    first, other = ([part.record(id_) for id_ in part.ids.tolist()] for part in (forget, retain))
    found = [pair for pair in duplicates(first, other) if first[pair.forget] is not other[pair.retain]]
    for pair in found[:SHOWN]:
        gone, stays = int(forget.ids[pair.forget]), int(retain.ids[pair.retain])
        alike = "the same" if pair.exact else f"nearly the same ({pair.similarity:.0%})"
        yield f"    example {gone} is to be forgotten and {stays} stays: {alike}"
    if len(found) > SHOWN:
        yield f"    and {len(found) - SHOWN:,} more of them"


def _plan(experiment: Experiment) -> Iterator[str]:
    from expunge.methods.base import methods

    sourced, sets = experiment.sourced, len(experiment.forget)
    model = experiment.recipe.initial(experiment.session())
    size = sum(parameter.numel() for parameter in model.parameters())
    yield f"{experiment.name}: no mistakes found."
    yield f"  data      {len(sourced.train):,} training and {len(sourced.test):,} test examples"
    yield from _text(sourced.train, model)
    yield from _picture(sourced, experiment, model)
    yield f"  model     {type(model).__name__}, {size:,} parameters, on {experiment.engine.torch_device}"
    for name, search in experiment.forget.items():
        # A search's baseline finds as many examples as the search itself, without training.
        quick = search.baseline() or search
        found = quick.search(model, sourced.train, experiment.task, experiment.session())
        share = len(found.ids) / len(sourced.train)
        yield f"  forget    {name}: {len(found.ids):,} examples ({share:.1%})"
        if not search.reads_model:
            yield from _near(experiment.split(found.ids))
    for name, method in experiment.methods.items():
        kind = methods.name_of(method)
        yield f"  method    {name}" + (f" ({kind})" if kind != name else "")
    original = 0 if experiment.original else 1
    trainings = original + sets * experiment.retrained
    unlearnings = sets * len(experiment.methods) * experiment.repeats
    yield (
        f"  to do     {trainings} trainings ({original} original, {experiment.retrained} retrained for each "
        f"of {sets} forget sets), {unlearnings} unlearnings"
    )
