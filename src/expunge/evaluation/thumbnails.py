"""Small pictures of what is to be forgotten, whatever the model works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.pictures import pictures
from expunge.tasks.base import Task
from expunge.tasks.diffusion import Diffusion


def thumbnails(
    data: Data, task: Task, model: nn.Module | None, class_names: Sequence[str] | None = None
) -> list[dict[str, str]]:
    """``data.pictures.pictures``, of a denoiser's data after its decoder; without one, pixels in [−1, 1]."""
    if not isinstance(task, Diffusion):
        return pictures(data, class_names)
    own: Any = getattr(model, "decode", None)
    device = next((p.device for p in model.parameters()), None) if model is not None else None

    def decode(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = inputs / 2 + 0.5 if own is None else own(inputs.to(device))
        return found

    return pictures(data, class_names, decode=decode)
