"""Activation checkpointing: blocks whose activations are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from expunge.errors import Unsupported
from expunge.training.blocks import blocks


class Recomputed:
    """The forward pass of one block, of which only the inputs are kept for the backward pass.

    What acts on the block from outside, hooks on it included, is not run again. Where no gradient is
    recorded nothing changes. The block keeps no keys and values: a second pass would add them twice; where
    earlier tokens are in a cache already, it runs as ever.
    """

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        self.block, self.forward = block, forward

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        caches = [value for value in (*inputs, *named.values()) if _is_cache(value)]
        if not torch.is_grad_enabled() or any(cache.get_seq_length() for cache in caches):
            return self.forward(*inputs, **named)
        inputs = tuple(None if _is_cache(value) else value for value in inputs)
        named = {name: None if _is_cache(value) else value for name, value in named.items()}
        if "use_cache" in named:
            named["use_cache"] = False
        was = self._state()

        def run(inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if self._state() != was:
                raise Unsupported(
                    f"the parameters of {type(self.block).__name__}, or the hooks inside it, are not those "
                    "of the forward pass any more, so that computing it again gives something else. Set "
                    "engine.activation_checkpointing=false; engine.accumulate=4 takes less memory too."
                )
            return self.forward(*inputs, **named)

        return checkpoint(run, inputs, named, use_reentrant=False)

    def _state(self) -> list[int]:
        """What the block computes with: its tensors and the hooks inside it."""
        found = []
        for module in self.block.modules():
            found += [id(value) for value in (*module._parameters.values(), *module._buffers.values())]
            if module is not self.block:
                found += [*module._forward_pre_hooks, *module._forward_hooks]
        return found


def _is_cache(value: object) -> bool:
    """Whether it holds the keys and values of earlier tokens, as transformers keep them."""
    return hasattr(value, "get_seq_length")


def recompute(model: nn.Module) -> None:
    """Lets every block of the model recompute its activations, until ``keep`` is called.

    Gradients are the same; a step takes about a forward pass more. Dropout draws what it drew before.

    Raises:
        Unsupported: no list of blocks, or BatchNorm in them, which a second pass would tell of a batch twice.
    """
    for block in _blocks(model):
        block.forward = Recomputed(block, block.forward)


def keep(model: nn.Module) -> None:
    """Undoes ``recompute``."""
    for module in model.modules():
        given = module.__dict__.get("forward")
        if isinstance(given, Recomputed):
            del module.forward
            if module.forward != given.forward:  # it had one of its own before, as libraries' hooks do
                module.forward = given.forward


def _blocks(model: nn.Module) -> list[nn.Module]:
    setting = "engine.activation_checkpointing computes the blocks of a transformer twice, and"
    instead = "Set it to false; engine.accumulate=4 takes less memory with any model."
    try:
        found = [block for _, block in blocks(model)]
    except Unsupported:
        raise Unsupported(
            f"{setting} {type(model).__name__} has no list of blocks of one class. {instead}"
        ) from None
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for block in found for part in block.modules()):
        raise Unsupported(f"{setting} BatchNorm would be told of every batch twice. {instead}")
    return found
