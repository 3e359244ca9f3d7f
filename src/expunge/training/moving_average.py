"""The exponential moving average of a model's weights over the steps of its training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MovingAverage:
    """``a ← d_n a + (1 − d_n) θ`` after each step ``n``, with ``d_n = min(decay, (1 + n) / (10 + n))``.

    The rising decay keeps the first, untrained weights out of the average of a short training. Averaged are
    the parameters that are trained and the floating-point buffers; it is called by the loop after each step.

    Args:
        decay: at its highest.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, model: nn.Module, index: int) -> bool:
        """Takes up the weights after step ``index``, counted from 1; never stops the loop."""
        current = _state(model)
        if not self.average:
            self.average = {name: value.clone() for name, value in current.items()}
        else:
            weight = 1 - min(self.decay, (1 + index) / (10 + index))
            torch._foreach_lerp_(list(self.average.values()), list(current.values()), weight)
        return False

    @torch.no_grad()
    def written(self, model: nn.Module) -> nn.Module:
        """The model itself, with the average in the place of its weights."""
        for name, value in {**dict(model.named_buffers()), **dict(model.named_parameters())}.items():
            if name in self.average:
                value.copy_(self.average[name])
        return model


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return state | {name: b for name, b in model.named_buffers() if b.is_floating_point()}
