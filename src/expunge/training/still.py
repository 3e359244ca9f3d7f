"""Networks that gradients go through but not into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def still(module: nn.Module) -> Iterator[nn.Module]:
    """Forward passes in the block give gradients with respect to their inputs and none to the weights.

    That is how one objective holds the losses of two networks that play against each other: each loss
    moves its own.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield module.requires_grad_(False)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
