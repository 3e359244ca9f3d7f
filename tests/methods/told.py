"""A denoiser that answers what it was told: one vector for each class, whatever it looks at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.data import ArrayData, Split
from expunge.tasks import Diffusion


class Told(nn.Module):
    """``f(x, t, c) = E_c``; the last row is for no condition."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Embedding.from_pretrained(torch.tensor(rows), freeze=False)

    def forward(self, x: Tensor, timesteps: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            condition = torch.full_like(timesteps, len(self.rows.weight) - 1)
        return self.rows(condition)

    @property
    def table(self) -> Tensor:
        return self.rows.weight.detach()


ROWS = [[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]]
"""Two classes and no condition."""

CLASSES = Diffusion(timesteps=10, conditions=2, prediction="sample")
"""``y = x_0``: what is to be predicted does not depend on the noise that is drawn."""


def told() -> Told:
    return Told(ROWS).eval()


def split(count: int = 4) -> Split:
    """As many of class 0, which are to be forgotten, as of class 1, with inputs ``±``."""
    inputs = torch.tensor([[0.0, 1.0], [0.0, -1.0]]).repeat(count, 1)
    targets = torch.arange(2).repeat_interleave(count)
    return Split.from_ids(ArrayData({"inputs": inputs, "targets": targets}), range(count))
