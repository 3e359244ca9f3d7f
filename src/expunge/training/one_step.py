"""A denoiser that draws an image in one step, and what it takes to distil one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch
from expunge.errors import ConfigError, DataError
from expunge.tasks.diffusion import Diffusion
from expunge.training.engine import Engine


class Distillation(nn.Module):
    """A generator and the network that learns its score; asked as a denoiser, it is the generator."""

    def __init__(self, generator: nn.Module, score: nn.Module) -> None:
        super().__init__()
        self.generator, self.score = generator, score

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor | None = None) -> Tensor:
        found: Tensor = self.generator(noisy, timesteps, condition)
        return found


@dataclass(frozen=True)
class Distilling(Diffusion):
    """Denoising as distillation draws it: timesteps of a range, and with each example noise to start from.

    Args:
        first, last: timesteps are drawn from ``first .. last − 1``.
    """

    first: int = 0
    last: int = 1000

    @classmethod
    def of(cls, task: Diffusion, levels: tuple[float, float]) -> Self:
        """The same task between two fractions of its timesteps, at least one timestep."""
        first = min(round(levels[0] * task.timesteps), task.timesteps - 1)
        last = max(round(levels[1] * task.timesteps), first + 1)
        own = {item.name: getattr(task, item.name) for item in fields(Diffusion)}
        return cls(**own, first=first, last=last)

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        batch = super().prepare(batch, generator)
        if generator is None:
            return batch
        return {**batch, "start": torch.randn(batch["inputs"].shape, generator=generator).to(batch["inputs"])}

    def _timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.first, self.last, (count,), generator=generator)


def level_of(task: Diffusion, fraction: float) -> int:
    """The timestep at a fraction of all.

    Raises:
        ConfigError: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"is a fraction of the timesteps in (0, 1], got {fraction}.", "start")
    return min(round(fraction * task.timesteps), task.timesteps - 1)


def drawn(model: nn.Module, task: Diffusion, batch: Batch, fraction: float) -> Tensor:
    """``x_g = x̂_0(√(1 − ᾱ_s) z, s, c)`` with ``z`` the batch's ``start`` and ``s`` at the fraction.

    ``x̂_0`` is what the model's prediction says of a noisy input; in the shape of ``start``.
    """
    start = batch["start"]
    steps = torch.full((len(start),), level_of(task, fraction), device=start.device)
    asked = {**batch, "noisy": task.levels(steps, start)[1] * start, "timesteps": steps}
    return task.original_clean(task.outputs(model, asked), asked)


def one_step(
    model: nn.Module,
    task: Diffusion,
    condition: Tensor | None,
    start: Tensor,
    *,
    fraction: float = 0.44,
    batch_size: int = 64,
    engine: Engine | None = None,
) -> Tensor:
    """Latents that a distilled generator draws, with one forward pass for each.

    ``x = x̂_0(√(1 − ᾱ_s) z, s, c)``; ``model.decode`` makes images of them.

    Args:
        condition: captions' tokens ``(N, T)``, classes ``(N,)``, or None.
        start: standard normal ``z``, ``(N, …)``: ``sampling.noise(shape, seeds)``.
        fraction: where ``s`` lies among the timesteps: the ``start`` of the method that distilled it.

    Raises:
        ConfigError: a fraction outside (0, 1].
        DataError: another number of conditions than of starts.
    """
    if condition is not None and len(condition) != len(start):
        raise DataError(f"start has {len(start)} rows for {len(condition)} conditions. Give one of each.")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    engine = engine or Engine(device=str(device))
    found = []
    with engine.frozen(model), engine.autocast():
        for rows in torch.arange(len(start)).split(batch_size):
            batch: Batch = {"start": start[rows].to(device)}
            if condition is not None:
                key = "input_ids" if condition.ndim > 1 else "targets"
                batch[key] = condition[rows].to(device)
            found.append(drawn(model, task, batch, fraction).float())
    return torch.cat(found)
