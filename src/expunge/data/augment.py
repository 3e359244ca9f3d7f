"""Random changes to the training view of images, made for a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import ConfigError


class Augment(Protocol):
    """Changes the inputs of one batch; its ``repr`` tells it apart from others in fingerprints."""

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """New inputs of the same shape ``(N, …)``; every draw comes from the CPU ``generator``."""
        ...


@dataclass(frozen=True)
class CropFlip:
    """Shift each image by up to ``padding`` pixels, zeros at the border, and mirror half of them.

    The usual CIFAR augmentation. The draws are made on the CPU, so that a seed gives the same
    images on every device.

    Raises:
        ConfigError: for a negative padding.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ConfigError(f"padding is in pixels and at least 0, got {self.padding}.", "padding")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Shapes: ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        n, _, height, width = inputs.shape
        p = self.padding
        shifts = torch.randint(0, 2 * p + 1, (2, n), generator=generator).to(inputs.device)
        padded = F.pad(inputs, (p, p, p, p))
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
        rows = torch.arange(n, device=inputs.device)
        shifted = windows[rows, :, shifts[0], shifts[1]]  # (N, C, H, W)
        if not self.flip:
            return shifted
        mirrored = torch.rand(n, generator=generator).lt(0.5).to(inputs.device)
        return torch.where(mirrored.view(-1, 1, 1, 1), shifted.flip(-1), shifted)
