"""Images from a denoiser: DDIM with classifier-free guidance, in batches, from given noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch
from expunge.errors import ConfigError, DataError, Diverged, Unsupported
from expunge.tasks.base import model_output
from expunge.tasks.diffusion import Diffusion
from expunge.tasks.noise_schedules import trailing
from expunge.training.engine import Engine

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Latents and timesteps to a prediction in the shape of the latents."""


class Reached(NamedTuple):
    """Where a sampler stopped.

    Args:
        latents: ``(N, …)``.
        timesteps: ``(N,)``, the level of noise that the latents are at: what the model would be asked next.
    """

    latents: Tensor
    timesteps: Tensor


def noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Normal noise to start from, ``(len(seeds), *shape)``; a seed gives the same row in any company."""
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


@overload
def sample(
    model: nn.Module,
    task: Diffusion,
    condition: Tensor | None,
    *,
    empty: Tensor | None = None,
    steps: int = 20,
    guidance: float = 2.5,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    since: int = 0,
    until: None = None,
    batch_size: int = 64,
    engine: Engine | None = None,
) -> Tensor: ...


@overload
def sample(
    model: nn.Module,
    task: Diffusion,
    condition: Tensor | None,
    *,
    empty: Tensor | None = None,
    steps: int = 20,
    guidance: float = 2.5,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    since: int = 0,
    until: int,
    batch_size: int = 64,
    engine: Engine | None = None,
) -> Reached: ...


def sample(
    model: nn.Module,
    task: Diffusion,
    condition: Tensor | None,
    *,
    empty: Tensor | None = None,
    steps: int = 20,
    guidance: float = 2.5,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    since: int = 0,
    until: int | None = None,
    batch_size: int = 64,
    engine: Engine | None = None,
) -> Tensor | Reached:
    """Latents drawn by DDIM without noise (Song et al., 2021), from the last timestep down.

    ``x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s) ε̂`` from timestep ``t`` to the next lower one ``s``, the last time to
    ``ᾱ = 1``; ``x̂_0`` and ``ε̂`` are what the guided prediction ``f(∅) + g (f(c) − f(∅))`` says of ``x_t``.
    The timesteps are ``round(T − i T / steps) − 1``. The model is left as it was; no gradient.

    Args:
        model: as the task calls it. A ``TextToImage`` encodes its captions once for all steps.
        condition: captions' tokens ``(N, T)`` or classes ``(N,)``; None for an unconditional model.
        empty: the empty prompt's tokens, ``(T,)`` or ``(1, T)``, where guidance is not 1. Of classes it is
            known.
        guidance: ``g > 0``; 1 is none and takes half the time. ``(1 + w) f(c) − w f(∅)`` is ``g = 1 + w``.
        generator: draws the noise to start from, for a model with a ``latent_shape``.
        start: that noise itself, ``(N, …)``; give one of the two. ``noise`` draws it from seeds.
        since: leave out so many of the first steps; ``start`` then is at the level of the first that is
            taken, ``trailing(T, steps)[since]``.
        until: stop after so many steps, ``0..steps − 1``.
        engine: device and precision; by default those of the model.

    Returns:
        Latents ``(N, …)`` on the model's device; ``model.decode`` makes images of them. With ``until`` they
        come with the timesteps that they are at: ``until=0`` gives the noise itself and the last timestep.

    Raises:
        ConfigError: steps, guidance, since or until out of range, no empty prompt, or no noise to start from.
        DataError: a start that is not finite or of another number.
        Diverged: latents became NaN or infinite.

    Differs: from diffusers' ``DDIMScheduler`` where ``steps`` does not divide the timesteps: it goes down by
        ``⌊T / steps⌋`` and so not to the timestep that the model is asked next; else they agree.

    Cost: ``2 · steps`` forward passes for each batch, ``steps`` without guidance.
    """
    places = _checked(task, steps, guidance, since, until)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x = _start(model, condition, generator, start).to(device)
    engine = engine or Engine(device=str(device))
    found = []
    with engine.frozen(model):
        for rows in torch.arange(len(x), device=device).split(batch_size):
            own = None if condition is None else condition.to(device)[rows]
            with engine.autocast():
                denoise = _guided(model, task, own, empty, guidance)
                found.append(_descend(denoise, task, x[rows], places))
    latents = torch.cat(found)
    if until is None:
        return latents
    return Reached(latents, torch.full((len(latents),), places[-1], device=device))


def _checked(task: Diffusion, steps: int, guidance: float, since: int, until: int | None) -> list[int]:
    """The timesteps that are gone through, and the one where it ends; −1 is the finished image."""
    if not 1 <= steps <= task.timesteps:
        raise ConfigError(f"must be 1..{task.timesteps}, the task's timesteps, got {steps}.", "steps")
    if not guidance > 0:
        raise ConfigError(
            f"must be above 0, got {guidance}. Use 1 for none; for images of no prompt give the empty one.",
            "guidance",
        )
    if not 0 <= since < steps:
        raise ConfigError(f"must be 0..{steps - 1}, got {since}. Leave it out to begin with noise.", "since")
    if until is not None and not since <= until < steps:
        raise ConfigError(
            f"must be {since}..{steps - 1}, got {until}. Leave it out for finished images.", "until"
        )
    places = [*trailing(task.timesteps, steps), -1]
    return places[since:] if until is None else places[since : until + 1]


def _start(
    model: nn.Module, condition: Tensor | None, generator: torch.Generator | None, start: Tensor | None
) -> Tensor:
    if (generator is None) == (start is None):
        raise ConfigError("give one of generator and start, the noise to begin with.", "start")
    if start is None:
        shape = getattr(model, "latent_shape", None)
        if shape is None or condition is None:
            raise ConfigError("the model or its condition does not say how much noise is needed. Give start.")
        return torch.randn((len(condition), *shape), generator=generator)
    if condition is not None and len(condition) != len(start):
        raise DataError(f"start has {len(start)} rows for {len(condition)} conditions. Give one of each.")
    if not torch.isfinite(start).all():
        raise DataError("start holds NaN or infinite values. Draw it anew: sampling.noise(shape, seeds).")
    return start


def _guided(
    model: nn.Module, task: Diffusion, condition: Tensor | None, empty: Tensor | None, guidance: float
) -> Denoise:
    """The prediction under guidance; both halves go through the model in one batch."""
    if guidance == 1 or condition is None:
        if condition is None and guidance != 1:
            raise Unsupported("an unconditional model has nothing to guide to. Use guidance=1.")
        return _denoise(model, condition)
    both = torch.cat([_empty(task, condition, empty), condition])
    denoise = _denoise(model, both)

    def guided(x: Tensor, timesteps: Tensor) -> Tensor:
        without, told = denoise(torch.cat([x, x]), torch.cat([timesteps, timesteps])).chunk(2)
        return without + guidance * (told - without)

    return guided


def _denoise(model: nn.Module, condition: Tensor | None) -> Denoise:
    encode = getattr(model, "encode_text", None)
    if encode is None or condition is None:
        return lambda x, timesteps: model_output(model(x, timesteps, condition))
    predict: Any = model.predict
    hidden = encode(condition)
    return lambda x, timesteps: model_output(predict(x, timesteps, hidden))


def _empty(task: Diffusion, condition: Tensor, empty: Tensor | None) -> Tensor:
    if empty is not None:
        return empty.to(condition).expand_as(condition)
    if condition.ndim > 1 or task.conditions is None:
        raise ConfigError("guidance needs the empty prompt's tokens. Give empty, or use guidance=1.", "empty")
    return torch.full_like(condition, task.conditions)


def _descend(denoise: Denoise, task: Diffusion, x: Tensor, places: Sequence[int]) -> Tensor:
    for here, below in itertools.pairwise(places):
        at = torch.full((len(x),), here, device=x.device)
        batch: Batch = {"noisy": x, "timesteps": at}
        predicted = denoise(x, at).float()
        clean, drawn = task.original_clean(predicted, batch), task.noise_of(predicted, batch)
        signal, spread = task.levels(torch.full_like(at, below), x)
        x = signal * clean + spread * drawn
        if not torch.isfinite(x).all():
            raise Diverged(
                f"the latents became NaN or infinite at timestep {here}. Lower guidance, or give a model "
                "that was trained for this task's prediction and schedule."
            )
    return x
