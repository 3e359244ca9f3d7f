"""How much each place of an image listens to each token of its caption."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import Unsupported
from expunge.training.cross_attention import cross_attention


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The probabilities of all cross-attention at the latest forward pass inside the block, by module name.

    ``A = softmax(s · q kᵀ)`` over the tokens, ``(N, heads, P, T)`` for ``P`` places, with gradient. They are
    computed from the outputs of ``to_q`` and ``to_k``, so that the model's own attention, fused or not, runs
    as before.

    Cost: the probabilities of all layers in memory.

    Raises:
        Unsupported: no cross-attention, or one that normalises queries and keys or does not name its heads.
    """
    found: dict[str, Tensor] = {}
    kept: dict[tuple[str, str], Tensor] = {}

    def keep(key: tuple[str, str], _: nn.Module, __: object, output: Tensor) -> None:
        kept[key] = output

    def done(name: str, module: nn.Module, _: object, __: object) -> None:
        found[name] = _probabilities(module, kept.pop((name, "to_q")), kept.pop((name, "to_k")))

    handles = []
    for name, module in cross_attention(model):
        _check(name, module)
        for end in ("to_q", "to_k"):
            handles.append(getattr(module, end).register_forward_hook(partial(keep, (name, end))))
        handles.append(module.register_forward_hook(partial(done, name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _probabilities(module: nn.Module, query: Tensor, key: Tensor) -> Tensor:
    """From ``(N, P, heads · d)`` and ``(N, T, heads · d)``; float32."""
    layer: Any = module
    query, key = (x.float().unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (query, key))
    return torch.softmax(layer.scale * query @ key.transpose(-1, -2), -1)


def _check(name: str, module: nn.Module) -> None:
    normed = [part for part in ("norm_q", "norm_k") if getattr(module, part, None) is not None]
    if normed or not (hasattr(module, "heads") and hasattr(module, "scale")):
        why = f"it has {normed[0]}" if normed else "it names no heads and no scale"
        raise Unsupported(
            f"the probabilities of '{name}' cannot be computed from its queries and keys: {why}. Use a "
            "method that does not look at attention: esd, uce."
        )
