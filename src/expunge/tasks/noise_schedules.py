"""How much of an example is left at each timestep of a diffusion model."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

NoiseSchedule = Literal["linear", "scaled_linear", "cosine"]

_LARGEST = 0.999


@functools.lru_cache(maxsize=16)
def signal_left(schedule: NoiseSchedule, timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """``ᾱ_t = Π_{s≤t} (1 − β_s)``, the share of the variance that is signal, ``(timesteps,)`` float32.

    - ``linear``: ``β`` from ``beta_start`` to ``beta_end`` (DDPM).
    - ``scaled_linear``: ``√β`` is linear between their roots (Stable Diffusion).
    - ``cosine``: ``β_t = min(1 − g((t + 1) / T) / g(t / T), 0.999)`` with
      ``g(u) = cos²(π/2 · (u + 0.008) / 1.008)`` (Nichol and Dhariwal, 2021); the ends are not used.
    """
    if schedule == "cosine":
        curve = [_cosine(step / timesteps) for step in range(timesteps + 1)]
        ratios = zip(curve[1:], curve, strict=False)
        betas = torch.tensor([min(1 - after / before, _LARGEST) for after, before in ratios])
    elif schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2
    else:
        betas = torch.linspace(beta_start, beta_end, timesteps)
    return torch.cumprod(1 - betas, 0)


def trailing(timesteps: int, steps: int) -> list[int]:
    """The timesteps of ``steps`` sampling steps: the last one of all, then evenly down.

    ``round(T − i T / steps) − 1`` for ``i = 0..steps − 1``, the spacing that diffusers calls ``trailing``:
    the first is pure noise, as in training.
    """
    return [round(timesteps - i * (timesteps / steps)) - 1 for i in range(steps)]


def _cosine(share: float) -> float:
    return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
