"""Folders of text-to-image pipelines, read and asked to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge import config, seeding
from expunge.data.arrays import Data, digest
from expunge.data.captions import CaptionedImages, tokenise
from expunge.data.hub import local
from expunge.data.pipeline_folder import INDEX
from expunge.data.tokenizers import check_vocabulary
from expunge.errors import CheckpointError, ConfigError, Unsupported, fitting_memory
from expunge.methods.conditions import imagined
from expunge.provenance import versions
from expunge.saved import SETTINGS, load
from expunge.store import Store, key_of
from expunge.training import sampling
from expunge.training.diffusion_models import TextToImage, pretrained_pipeline
from expunge.training.engine import Engine
from expunge.training.parameters import check_finite
from expunge.training.session import Callback, Event, Session

Folder = str | Path
"""One that ``save_pretrained`` of a pipeline or ``expunge.save`` wrote, or a Hub id."""

AT_ONCE = 2**17
"""Numbers in the latents that are drawn at once; 8 images of Stable Diffusion."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a pipeline draws: by DDIM, with the noise schedule that it was trained by.

    Args:
        steps: of the sampler.
        guidance: above 0; 1 is none.
    """

    steps: int = 50
    guidance: float = 7.5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"must be at least 1, got {self.steps}.", "steps")
        if not self.guidance > 0:
            raise ConfigError(f"must be above 0, got {self.guidance}. Use 1 for none.", "guidance")


def read(folder: Path) -> TextToImage:
    """The pipeline in a folder, with weights in float32, under its guard if it has one.

    Raises:
        CheckpointError: no pipeline, a damaged one, one without tokenizer, or weights that are not finite.
        Unsupported: a pipeline without a text encoder, or with two.
        DataError: a tokenizer that is not the model's.
    """
    if not (folder / INDEX).is_file():
        pretrained_pipeline(folder)  # says what is wrong
    model: Any = load(folder).float()
    tokenizer = model.companions.tokenizer
    if tokenizer is None:
        raise CheckpointError(f"the pipeline '{folder}' has no tokenizer. Copy the whole folder again.")
    check_finite(model, str(folder))
    embedding = getattr(model.text_encoder, "get_input_embeddings", None)
    if embedding is not None:
        check_vocabulary(tokenizer, embedding().weight.shape[0])
    found: TextToImage = model
    return found


def unguarded(folder: Path) -> TextToImage:
    """Likewise, but only where there is no guard.

    Raises:
        Unsupported: there is one.
    """
    if (folder / SETTINGS).exists():
        raise Unsupported(f"'{folder}' is under a guard. Give the pipeline that it was made from.")
    return read(folder)


def drawn(
    model: TextToImage, data: CaptionedImages, part: str, drawing: Drawing, cache: Path, session: Session
) -> Tensor:
    """Latents that a model draws for captions, ``(N, C, h, w)``; each once for the same weights and seed."""
    weights = digest(sorted((name, tensor.cpu()) for name, tensor in model.state_dict().items()))
    how = [config.dump(drawing), config.dump(model.task), config.identity(session.engine), part, session.seed]
    key = key_of(weights, data.fingerprint(), *how, versions())

    def compute() -> tuple[dict[str, Any], dict[str, Tensor]]:
        own = session.child("drawn", part)
        images: Data = imagined(model, data, model.task, own, steps=drawing.steps, guidance=drawing.guidance)
        return {}, {"inputs": images.column("inputs")}

    return Store(cache).tensors(part, key, compute)[1]["inputs"]


@fitting_memory()
def sample(
    pipelines: Sequence[Folder],
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    drawing: Drawing | None = None,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Tensor]:
    """What each pipeline draws: by its folder ``(P, S, 3, H, W)`` in [0, 1].

    A prompt and a seed have a noise of their own to start from, the same for all pipelines. A guarded one
    draws under its guard, and no safety checker blackens anything. One is in memory at a time.

    Raises:
        ConfigError: no prompt, no seed, or guidance that is not above 0.
        CheckpointError, Unsupported: as ``request``.
        DataError: a prompt longer than the tokenizer's context.
        Diverged: latents became NaN or infinite.
    """
    if not prompts or not seeds:
        raise ConfigError(f"there is nothing to draw: {len(prompts)} prompts and {len(seeds)} seeds.")
    session, how = Session(0, engine or Engine(), tuple(callbacks)), drawing or Drawing()
    found = {}
    for index, folder in enumerate(pipelines):
        model = read(local(folder))
        found[str(folder)] = _sampled(model, prompts, seeds, how, session.engine)
        session.emit(Event("step", "images", index + 1, len(pipelines)))
    return found


def _sampled(
    model: TextToImage, prompts: Sequence[str], seeds: Sequence[int], how: Drawing, engine: Engine
) -> Tensor:
    tokenizer, placed = model.companions.tokenizer, engine.place(model)
    rows = torch.arange(len(prompts)).repeat_interleave(len(seeds))
    starts = [seeding.derive(seed, prompt) for prompt in prompts for seed in seeds]
    latents = sampling.sample(
        placed,
        model.task,
        tokenise(tokenizer, prompts)[rows],
        empty=tokenise(tokenizer, [""]),
        steps=how.steps,
        guidance=how.guidance,
        start=sampling.noise(model.latent_shape, starts),
        batch_size=max(1, AT_ONCE // prod(model.latent_shape)),
        engine=engine,
    )
    with engine.frozen(placed):
        images = torch.cat([model.decode(part).cpu() for part in latents.float().split(8)])
    return images.view(len(prompts), len(seeds), *images.shape[1:])
