"""Low-rank adapters beside the layers of a denoiser's transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cosine_similarity, linear

from expunge.errors import Unsupported

MEMBRANE = "membrane"
"""The module of a model that holds the factors while they are trained."""


def adapted_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The linear and convolutional layers of the denoiser's transformers, by their names in the model.

    Transformers are the modules with ``transformer_blocks``; their projections in and out belong to them.

    Raises:
        Unsupported: there are none, or a convolution has groups.
    """
    inside = [
        f"{name}."
        for name, module in model.named_modules()
        if name.startswith("unet.") and isinstance(getattr(module, "transformer_blocks", None), nn.ModuleList)
    ]
    found = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(tuple(inside)) and isinstance(module, nn.Linear | nn.Conv2d)
    }
    if not found:
        raise Unsupported(
            f"{type(model).__name__} has no transformers with layers to adapt. Use a text-to-image model of "
            "diffusers, or another method: esd."
        )
    grouped = [name for name, layer in found.items() if isinstance(layer, nn.Conv2d) and layer.groups != 1]
    if grouped:
        raise Unsupported(f"'{grouped[0]}' is a convolution in groups. Use another method: esd.")
    return found


def through(layer: nn.Module, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """``B A x`` in the place of ``W x``, in the type of the factors.

    Of a linear layer ``A`` is ``(r, D_in)`` and ``B`` ``(D_out, r)``; of a convolution ``A`` is ``(r, C_in,
    k, k)``, applied as the layer is, and ``B`` ``(C_out, r, 1, 1)``.
    """
    if isinstance(layer, nn.Conv2d):
        inner = conv2d(x.to(down.dtype), down, None, layer.stride, layer.padding, layer.dilation)
        return conv2d(inner, up)
    return linear(linear(x.to(down.dtype), down), up)


class Membranes(nn.Module):
    """The factors of every adapted layer while they are trained, open: ``W x + s B A x``.

    ``A`` starts as layers of its kind do, ``B`` at 0. It becomes a part of ``model``.
    """

    def __init__(self, model: nn.Module, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        for name, layer in adapted_layers(model).items():
            outputs, *inputs = layer.weight.shape
            bound = layer.weight[0].numel() ** -0.5
            down = (2 * torch.rand(rank, *inputs, generator=generator) - 1) * bound
            up = torch.zeros(outputs, rank, *[1] * (len(inputs) - 1))
            for which, value in (("down", down), ("up", up)):
                self.register_parameter(
                    f"{which}/{name.replace('.', '/')}", nn.Parameter(value.to(layer.weight.device))
                )
            layer.register_forward_hook(partial(self.beside, name.replace(".", "/")))
        model.add_module(MEMBRANE, self)

    def beside(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Adds to the output of a layer; its forward hook."""
        factors = (self.get_parameter(f"{which}/{name}") for which in ("down", "up"))
        return output + (self.scale * through(layer, inputs[0], *factors)).to(output.dtype)

    def factors(self) -> dict[str, Tensor]:
        """``down/<layer>`` and ``up/<layer>``."""
        return {name: value.detach() for name, value in self.named_parameters()}


def drawn_states(like: Tensor, seeds: list[int]) -> Tensor:
    """Normal numbers in the place of the states ``(N, T, D)`` of captions, one draw for each row.

    The whole is as long as the row of ``like`` times a number from 0.8 to 1.2; a draw is taken with the
    probability ``1 − cos`` of the two, else another is made.
    """
    rows = []
    for row, seed in zip(like, seeds, strict=True):
        draws = torch.Generator().manual_seed(seed)
        while True:
            found = torch.randn(row.shape, generator=draws).to(row)
            close = cosine_similarity(found.flatten(), row.flatten(), dim=0)
            if float(torch.rand((), generator=draws)) < 1 - float(close):
                break
        length = (0.8 + 0.4 * torch.rand((), generator=draws).to(row)) * row.norm()
        rows.append(length * found / found.norm())
    return torch.stack(rows)
