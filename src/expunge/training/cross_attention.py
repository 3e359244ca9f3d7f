"""Where a denoiser listens to its caption: cross-attention, found by what its modules have."""

from __future__ import annotations

from torch import nn

from expunge.errors import Unsupported

_CHILDREN = ("to_q", "to_k", "to_v")


def cross_attention(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that attend to the caption, with their names, in the model's order.

    They have ``to_q``, ``to_k`` and ``to_v`` and say themselves that they are cross-attention, as those of
    diffusers do (``attn2``); where they do not say, the name ``attn2`` tells.

    Raises:
        Unsupported: the model has none.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if all(isinstance(getattr(module, child, None), nn.Module) for child in _CHILDREN)
        and getattr(module, "is_cross_attention", name.rpartition(".")[2] == "attn2")
    ]
    if not found:
        raise Unsupported(
            f"{type(model).__name__} has no cross-attention, so it listens to no captions. Use a "
            "text-to-image model, or set the scope to everything."
        )
    return found
