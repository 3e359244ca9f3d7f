"""Folders of text-to-image pipelines, before and after, judged by what they draw."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from expunge import config, foreign
from expunge.data.canvas import Canvas
from expunge.data.captions import CaptionedImages
from expunge.data.hub import local
from expunge.data.pipeline_folder import INDEX
from expunge.data.source import DataSource, Sourced, sources
from expunge.data.split import Split
from expunge.drawing import Folder, read
from expunge.errors import ConfigError, DataError, did_you_mean, fitting_memory
from expunge.evaluation.gallery import Gallery
from expunge.evaluation.metric import Metric
from expunge.evaluation.metric import metrics as known_metrics
from expunge.evaluation.metrics.clip_alignment import ClipAlignment
from expunge.evaluation.metrics.frechet import Frechet
from expunge.evaluation.metrics.unlearn_canvas import (
    ConditionedAccuracy,
    CrossDomainAccuracy,
    InDomainAccuracy,
    UnlearningAccuracy,
)
from expunge.evaluation.metrics.utility import Loss
from expunge.evaluation.picture_judges import Judge, loaded
from expunge.evaluation.report import Report
from expunge.training.denoisers import TextToImage
from expunge.training.engine import Engine
from expunge.training.session import Callback

GALLERY = Gallery(steps=50, guidance=7.5)
"""How pipelines draw when nothing else is asked for."""

PARTS: tuple[Literal["forget", "retain"], ...] = ("forget", "retain")

ENCODED = 16
"""Images that are encoded at once."""


def is_pipeline(folder: Folder) -> bool:
    """Whether a folder holds a pipeline of diffusers."""
    return (Path(folder) / INDEX).is_file()


@fitting_memory()
def judge(
    original: Folder,
    unlearned: Folder | Sequence[Folder] | Mapping[str, Folder],
    retrained: Folder | Sequence[Folder] = (),
    *,
    data: object,
    concept: str,
    gallery: Gallery = GALLERY,
    judge: Judge | None = None,
    metrics: Sequence[str | Mapping[str, Any] | Metric] | None = None,
    controls: Sequence[str] = (),
    margins: Mapping[str, float] | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
    cache: str | Path | None = None,
    name: str = "evaluation",
) -> Report:
    """A report on folders of text-to-image pipelines; guarded ones under their guard. None is changed.

    All draw the same prompts from the same noise, by DDIM with the original's noise schedule; what they draw
    is decoded by the original's autoencoder. Without retrained pipelines nothing can be said about
    forgetting: there are values but no verdicts.

    Args:
        original, unlearned: before and after: one folder, several, or several by name.
        retrained: trained without the concept; with fewer than 3 hardly any verdict can be reached.
        data: real images of all concepts, on which the judges are trained: a folder (see
            ``data.captioned_folder``), ``canvas`` or another source by name or mapping, or what
            ``foreign.read_data`` takes, as latents of the original with its tokenizer.
        concept: what was to be forgotten: ``mosaic style``, ``star``, or both, ``star in mosaic style``.
        gallery, judge: of the metrics that have no others of their own.
        metrics: by default those of ``measured``.
        controls, margins: as in ``expunge.evaluate``.
        cache: a folder that keeps the judges for the next call.

    Raises:
        CheckpointError, Unsupported: a folder that is no pipeline, or one without a text encoder.
        DataError: images that cannot be read, a concept that they do not show, or a pipeline of other tokens,
            latents or noise than the original.
        ConfigError: an unknown metric, a name that cannot be used.
    """
    folder = local(original)
    model = read(folder)
    sourced = read_data(data, folder, model)
    train, test = _fits(sourced.train, model), _fits(sourced.test, model)
    split = Split.from_ids(train, concept_ids(train, concept), test=test)
    several = [retrained] if isinstance(retrained, (str, Path)) else retrained
    given = unlearned if isinstance(unlearned, Mapping) else foreign.named(unlearned)
    who = judge or Judge()
    if who.load:
        for domain, names in train.concepts.items():
            loaded(who, domain, names)
    chosen = measured(split, gallery, who) if metrics is None else _drawing(metrics, gallery, who)
    return foreign.audit(
        model,
        {label: _beside(str(one), folder, model) for label, one in given.items()},
        split=split,
        retrained=[_beside(one, folder, model) for one in several],
        task=model.task,
        metrics=chosen,
        controls=controls,
        margins=margins,
        seed=seed,
        engine=engine,
        callbacks=callbacks,
        cache=cache,
        name=name,
    )


def measured(split: Split, gallery: Gallery = GALLERY, judge: Judge | None = None) -> list[Metric]:
    """What is measured when nothing else is asked for.

    UnlearnCanvas's accuracies, as far as the data has domains for them, and its Fréchet distance; cosines
    with the prompts by a CLIP pair; and the loss on images of the concept and on unseen ones.
    """
    fields: dict[str, Any] = {"gallery": gallery, "judge": judge or Judge()}
    found: list[Metric] = [UnlearningAccuracy(**fields), InDomainAccuracy(**fields)]
    if isinstance(split.forget, CaptionedImages) and len(split.forget.concepts) > 1:
        pair = all(len(split.forget.column(domain).unique()) == 1 for domain in split.forget.concepts)
        found += [] if pair else [CrossDomainAccuracy(**fields)]
        found.append(ConditionedAccuracy(**fields))
    found += [Frechet(**fields), *(ClipAlignment(part=part, gallery=gallery) for part in PARTS)]
    return [*found, Loss(part="forget"), *([Loss(part="test")] if split.test is not None else [])]


def read_data(data: object, folder: Path, model: TextToImage) -> Sourced:
    """Training and test images as what the pipeline in a folder works on, with its tokens.

    Raises:
        ConfigError, DataError: they cannot be read, or are of another size.
    """
    source = _source(data, folder, model)
    if not isinstance(source, Canvas):
        return foreign.read_data(data if source is None else source)
    plain = replace(source, codec=None).load()
    size = _size(model)
    if source.size != size:
        raise DataError(
            f"the canvas has {source.size} pixels along a side and '{folder}' draws {size}. Give --data "
            f"'{{kind: canvas, size: {size}}}'."
        )
    train, test = (_encoded(part, model) for part in (plain.train, plain.test))
    return Sourced(train, test, image_shape=plain.image_shape)


def concept_ids(train: CaptionedImages, concept: str) -> Tensor:
    """Ids of the images that show a concept, or one concept of each domain at once.

    ``mosaic style``, ``mosaic``, ``Mosaic`` and ``star in mosaic style`` are all understood; underscores are
    spaces.

    Raises:
        DataError: the data does not have it, or the words say several of one domain.
    """
    if not train.concepts:
        raise DataError("the data does not say what its images show. Give images with named concepts.")
    words = f" {_plain(concept)} "
    named = {domain: _named(words, domain, names) for domain, names in train.concepts.items()}
    several = [(domain, names) for domain, names in named.items() if len(names) > 1]
    if several:
        domain, names = several[0]
        raise DataError(f"'{concept}' could be the {domain} {' or '.join(names)}. Name one of them.")
    found = {domain: names[0] for domain, names in named.items() if names}
    if not found:
        known = [name for names in train.concepts.values() for name in names]
        raise DataError(f"the data shows no '{concept}'.{did_you_mean(concept, known)}")
    there = torch.ones(len(train), dtype=torch.bool)
    for domain, name in found.items():
        there &= train.column(domain) == train.concepts[domain].index(name)
    if not there.any():
        raise DataError(f"no training image shows {' '.join(found.values())}. Name what the data has.")
    return train.ids[there]


def _named(words: str, domain: str, names: Sequence[str]) -> list[str]:
    """The concepts of a domain that the words name: the longest where one is a part of another."""
    there = [name for name in names if f" {_plain(name)} " in words]
    exact = [name for name in there if words.strip() in (_plain(name), f"{_plain(name)} {_plain(domain)}")]
    if exact:
        return exact
    return [
        name
        for name in there
        if not any(name != other and f" {_plain(name)} " in f" {_plain(other)} " for other in there)
    ]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _source(data: object, folder: Path, model: TextToImage) -> DataSource | None:
    """A source by name, mapping or folder, with what the pipeline decides; None for anything else."""
    if isinstance(data, DataSource):
        return data
    named = isinstance(data, str) and data in sources
    if isinstance(data, (str, Path)) and not named and Path(data).is_dir():
        data = {"kind": "captioned_folder", "path": str(data)}
    given: dict[str, Any] = {"kind": data} if named else dict(data) if isinstance(data, Mapping) else {}
    if given.get("kind") == "captioned_folder":
        given = {**given, "pipeline": str(folder)}
    if given.get("kind") == "canvas":
        given = {"size": _size(model), **given}
    return config.build(sources, given, "data") if given else None


def _size(model: TextToImage) -> int:
    """Pixels along a side of what it draws."""
    settings: Any = model.vae.config
    factor: int = 2 ** (len(settings.block_out_channels) - 1)  # as pipelines of diffusers take it
    return model.latent_shape[1] * factor


def _encoded(data: Any, model: TextToImage) -> CaptionedImages:
    """Images in [−1, 1] and their captions as the pipeline's latents and tokens."""
    assert isinstance(data, CaptionedImages)
    parts = data.column("inputs").split(ENCODED)
    return CaptionedImages(
        torch.cat([model.encode(part / 2 + 0.5) for part in parts]),
        data.captions,
        model.companions.tokenizer,
        concepts=data.concepts,
        columns={domain: data.column(domain) for domain in data.concepts},
    )


def _fits(data: object, model: TextToImage) -> CaptionedImages:
    """The data, if the pipeline can work on it.

    Raises:
        DataError: it cannot.
    """
    if not isinstance(data, CaptionedImages):
        raise DataError(
            "pipelines are judged on captioned images with concepts. Give a folder of them, or canvas."
        )
    shape = tuple(data.column("inputs").shape[1:])
    if shape != tuple(model.latent_shape):
        raise DataError(f"the data's latents are {shape}, and the pipeline's {tuple(model.latent_shape)}.")
    if data.tokenizer.get_vocab() != model.companions.tokenizer.get_vocab():
        raise DataError("the data has other tokens than the pipeline. Give captions by its tokenizer.")
    return data


def _beside(folder: Folder, origin: Path, original: TextToImage) -> TextToImage:
    """A pipeline that draws what the original is asked to draw.

    Raises:
        DataError: it reads other tokens, or works on other latents or noise.
    """
    model = read(local(folder))
    for what, mine, theirs in (
        ("tokens", model.companions.tokenizer.get_vocab(), original.companions.tokenizer.get_vocab()),
        ("latents", model.latent_shape, original.latent_shape),
        ("noise schedules", model.task, original.task),
    ):
        if mine != theirs:
            raise DataError(
                f"'{folder}' and '{origin}' have {what} that differ. Only pipelines with the same can be "
                "compared."
            )
    return model


def _drawing(
    metrics: Sequence[str | Mapping[str, Any] | Metric], gallery: Gallery, judge: Judge
) -> list[Metric]:
    """The metrics, with this gallery and judge where they say nothing of them."""
    found = []
    for given in metrics:
        metric: Any = config.build(known_metrics, given, "metrics")
        said = given if isinstance(given, Mapping) else {}
        if not isinstance(given, Metric):
            there = {item.name for item in fields(metric)} - set(said)
            mine = {"gallery": gallery, "judge": judge}
            metric = replace(metric, **{name: value for name, value in mine.items() if name in there})
        found.append(metric)
    if not found:
        raise ConfigError("name at least one.", "metrics")
    return found
