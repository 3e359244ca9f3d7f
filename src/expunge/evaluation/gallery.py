"""What a generative model draws: its images of every concept, made once and judged by all metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from expunge import seeding
from expunge.data.arrays import ArrayData, Data
from expunge.data.captions import EMPTY, CaptionedImages
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.evaluation.evidence import Evidence
from expunge.tasks.diffusion import Diffusion
from expunge.training import sampling
from expunge.training.session import Event

PAIR, CLASS = "pair", "class"
"""The domain of one concept of each domain at once, and that of models of classes."""

SHOWN = "gallery"
"""Under this name a subject keeps the first gallery that was drawn in full, which reports show some of."""

_COLOURS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """How the images that metrics judge are drawn: every prompt with every seed.

    A prompt is what the training data calls one combination of concepts, an object in a style. Every prompt
    and seed has a noise of its own to start from, the same for all models.

    Args:
        seeds: one image of each prompt for each of them; those of UnlearnCanvas by default.
        steps, guidance: of the sampler, see ``training.sampling.sample``.

    Raises:
        ConfigError: no seed or one given twice, no step, or a guidance that is not above 0.
    """

    seeds: tuple[int, ...] = (188, 288, 588, 688, 888)
    steps: int = 20
    guidance: float = 2.5

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"needs distinct seeds, at least one, got {list(self.seeds)}.", "seeds")
        if self.steps < 1:
            raise ConfigError(f"must be at least 1, got {self.steps}.", "steps")
        if not self.guidance > 0:
            raise ConfigError(f"must be above 0, got {self.guidance}. Use 1 for none.", "guidance")

    @property
    def words(self) -> list[str]:
        """What a score's variant says of it: what differs from the default."""
        plain = Gallery()
        words = [f"{len(self.seeds)}-seeds"] * (self.seeds != plain.seeds)
        words += [f"{self.steps}-steps"] * (self.steps != plain.steps)
        return words + [f"g{self.guidance:g}"] * (self.guidance != plain.guidance)


@dataclass(frozen=True, eq=False)
class Prompts:
    """One prompt for each combination of concepts in the training data.

    Attributes:
        domains: names of the concepts by domain.
        cells: the concept of each prompt in each domain, ``(P, D)``.
        texts: captions, or names of classes.
        condition: what the model is given, tokens ``(P, T)`` or classes ``(P,)``.
        empty: tokens of the empty prompt ``(1, T)``; None for classes.
    """

    domains: dict[str, tuple[str, ...]]
    cells: Tensor
    texts: tuple[str, ...]
    condition: Tensor
    empty: Tensor | None


@dataclass(frozen=True, eq=False)
class Target:
    """The concepts that are to be forgotten.

    Attributes:
        domain: theirs; ``pair`` for one combination of concepts.
        names: of the concepts.
        cells: of a domain the numbers of its concepts ``(K,)``, of a pair the combination ``(1, D)``.
        column: the place of the domain among all; -1 for a pair.
    """

    domain: str
    names: tuple[str, ...]
    cells: Tensor
    column: int

    @property
    def is_pair(self) -> bool:
        return self.column < 0

    def among(self, cells: Tensor) -> Tensor:
        """Which rows of ``(N, D)`` show a concept to forget, ``(N,)`` booleans."""
        if self.is_pair:
            return (cells == self.cells).all(1)
        return torch.isin(cells[:, self.column], self.cells)


@dataclass(frozen=True, eq=False)
class Pictures:
    """What one model drew: the images of the first prompt with all seeds, then those of the second.

    Attributes:
        images: ``(N, C, H, W)`` uint8 on the CPU.
        prompts: what was asked for.
        rows: the prompt of each image, ``(N,)``.
        seconds: how long it took.
    """

    images: Tensor
    prompts: Prompts
    rows: Tensor
    seconds: float

    @property
    def cells(self) -> Tensor:
        """The concept that each image was asked to show, by domain, ``(N, D)``."""
        return self.prompts.cells[self.rows]

    @cached_property
    def per_second(self) -> float:
        """Images drawn in a second."""
        return len(self.images) / max(self.seconds, 1e-9)


def training(evidence: Evidence) -> Data:
    """Forget and retain data together, of a task that draws images.

    Raises:
        Unsupported: the task draws none.
        DataError: the two are no parts of one data set.
    """
    return evidence.original.once("training images", lambda: _training(evidence))


def _training(evidence: Evidence) -> Data:
    if not isinstance(evidence.task, Diffusion):
        raise Unsupported(
            f"only a model that draws images can be asked for them; the task is "
            f"'{type(evidence.task).__name__}'. Use accuracy or loss."
        )
    data = evidence.parts["retain"].joined(evidence.parts["forget"])
    if data.column("inputs").ndim != 4:
        shape = tuple(data.column("inputs").shape)
        raise Unsupported(f"only a model that draws images has any to judge; inputs are {shape}. Use loss.")
    return data


def domains(data: Data, task: Diffusion) -> dict[str, tuple[str, ...]]:
    """Names of the concepts by domain: those of captioned images, or the classes.

    Raises:
        DataError: the data names none.
    """
    if isinstance(data, CaptionedImages) and data.concepts:
        return dict(data.concepts)
    if task.conditions is not None and not isinstance(data, CaptionedImages):
        names = data.class_names if isinstance(data, ArrayData) else None
        return {CLASS: names or tuple(f"class {number}" for number in range(task.conditions))}
    raise DataError(
        "the data does not say what its images show. Give CaptionedImages concepts, and a column of each "
        "domain."
    )


def cells(data: Data, found: Mapping[str, tuple[str, ...]]) -> Tensor:
    """The concept of each example in each domain, ``(N, D)``."""
    names = ["targets"] if tuple(found) == (CLASS,) else list(found)
    return torch.stack([data.column(name) for name in names], 1)


def prompts(evidence: Evidence) -> Prompts:
    """The first caption of each combination of concepts that the training data has, in their order.

    Raises:
        Unsupported, DataError: as ``training`` and ``domains``.
    """
    return evidence.original.once("prompts", lambda: _prompts(evidence))


def _prompts(evidence: Evidence) -> Prompts:
    data = training(evidence)
    assert isinstance(evidence.task, Diffusion)
    found = domains(data, evidence.task)
    every = cells(data, found)
    unique, where = every.unique(dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(data)).scatter_reduce(0, where, torch.arange(len(data)), "amin")
    if not isinstance(data, CaptionedImages):
        (names,) = found.values()
        texts = tuple(names[number] for number in unique[:, 0].tolist())
        return Prompts(found, unique, texts, unique[:, 0], None)
    few = data.subset(data.ids[first])
    empty = data.column(f"{EMPTY}.input_ids")[:1]
    return Prompts(found, unique, few.captions, few.column("input_ids"), empty)


def target(evidence: Evidence) -> Target:
    """The concepts that are to be forgotten: those of forget examples that no retained example shows.

    Raises:
        Unsupported: as ``training``.
        DataError: there is no such concept, or it is not clear which of several domains is meant.
    """
    data = training(evidence)
    assert isinstance(evidence.task, Diffusion)
    found = domains(data, evidence.task)
    gone, kept = (cells(evidence.parts[part], found) for part in ("forget", "retain"))
    apart = [column for column in range(len(found)) if not torch.isin(gone[:, column], kept[:, column]).any()]
    if len(apart) == 1:
        (column,) = apart
        numbers = gone[:, column].unique()
        domain = list(found)[column]
        return Target(domain, tuple(found[domain][k] for k in numbers.tolist()), numbers, column)
    unique = gone.unique(dim=0)
    if not apart and len(unique) == 1 and not (kept == unique).all(1).any():
        names = (found[domain][k] for domain, k in zip(found, unique[0].tolist(), strict=True))
        return Target(PAIR, (" ".join(names),), unique, -1)
    why = (
        f"concepts of {len(apart)} domains are only in it" if apart else "its concepts are retained elsewhere"
    )
    raise DataError(
        f"the forget set does not say which concept to forget: {why}. Forget all images of a style, of an "
        "object or of an object in a style: {kind: concept_set, domain: style, name: …}."
    )


def pictures(evidence: Evidence, gallery: Gallery, chosen: Sequence[int] | None = None) -> Pictures:
    """What the subject draws, made once for each gallery; one image for each prompt and seed.

    Args:
        chosen: of these prompts alone; nothing is kept then where the others were not drawn.

    Raises:
        Unsupported: the model draws no images.
        DataError: as ``prompts``.
        ConfigError: more steps than the task has timesteps.
        Diverged: latents became NaN or infinite.
    """
    key = ("pictures", gallery)
    if chosen is None:
        evidence.subject.once(SHOWN, lambda: gallery)
        return evidence.subject.once(key, lambda: _drawn(evidence, gallery, prompts(evidence)))
    asked = prompts(evidence)
    few = torch.tensor(list(chosen))
    if evidence.subject.has(key):
        whole = evidence.subject.once(key, lambda: _drawn(evidence, gallery, asked))
        there = torch.cat([(whole.rows == row).nonzero()[:, 0] for row in chosen])
        return replace(whole, images=whole.images[there], rows=whole.rows[there])
    part = replace(
        asked, cells=asked.cells[few], texts=tuple(asked.texts[k] for k in chosen),
        condition=asked.condition[few],
    )  # fmt: skip
    drawn = _drawn(evidence, gallery, part)
    return replace(drawn, prompts=asked, rows=few[drawn.rows])


def decoded(evidence: Evidence, latents: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` uint8 on the CPU of what the denoiser works on, by the original's decoder.

    Raises:
        Unsupported: neither a decoder nor pixels.
    """
    engine, model = evidence.session.engine, evidence.original.placed
    decode: Any = getattr(model, "decode", None)
    if decode is None:
        if latents.shape[1] not in _COLOURS:
            raise Unsupported(
                f"{latents.shape[1]} channels are no colours, and {type(model).__name__} has "
                "no decode(latents). Use kind text_to_image, or a model with one."
            )
        return _bytes(latents / 2 + 0.5)
    with engine.frozen(model):
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        return torch.cat([_bytes(decode(part.to(device))) for part in latents.split(_batch(latents))])


def _batch(latents: Tensor) -> int:
    """As many examples as have at most 2²⁰ numbers together, and no more than 256."""
    return max(1, min(256, 2**20 // max(1, latents[0].numel())))


def _drawn(evidence: Evidence, gallery: Gallery, asked: Prompts) -> Pictures:
    subject, task = evidence.subject, evidence.task
    assert isinstance(task, Diffusion)
    shape = evidence.parts["retain"].column("inputs").shape[1:]
    rows = torch.arange(len(asked.texts)).repeat_interleave(len(gallery.seeds))
    seeds = [seeding.derive(seed, text) for text in asked.texts for seed in gallery.seeds]
    start = time.perf_counter()
    latents = sampling.sample(
        subject.placed,
        task,
        asked.condition[rows],
        empty=asked.empty,
        steps=gallery.steps,
        guidance=gallery.guidance,
        start=sampling.noise(shape, seeds),
        engine=evidence.session.engine,
    )
    found = Pictures(decoded(evidence, latents), asked, rows, time.perf_counter() - start)
    speed = {"images": float(len(rows)), "seconds": found.seconds, "images_per_second": found.per_second}
    subject.session.emit(Event("evaluated", f"{subject.name}: gallery", values=speed))
    return found


def _bytes(images: Tensor) -> Tensor:
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
