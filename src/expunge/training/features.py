"""Hidden activations by module name, captured during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.errors import Unsupported, did_you_mean


@contextmanager
def captured(model: nn.Module, module: str | None = None) -> Iterator[list[Tensor]]:
    """Collects the input of a module at each forward pass inside the block.

    Args:
        model: any module.
        module: its dotted name; by default the last linear layer, whose input is the penultimate
            representation.

    Yields:
        a list that grows by one tensor ``(N, …)`` for each forward pass.

    Raises:
        Unsupported: no such module, or no linear layer to take by default.
    """
    target = _named(model, module) if module is not None else _last_linear(model)
    found: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0].detach())

    handle = target.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def steered(model: nn.Module, module: str, shift: Tensor) -> Iterator[None]:
    """Adds ``shift`` to the output of a module inside the block.

    Raises:
        Unsupported: no such module.
    """

    def add(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output + shift.to(output)

    handle = _named(model, module).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _named(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        raise Unsupported(f"the model has no module '{name}'.{did_you_mean(name, [n for n in modules if n])}")
    return modules[name]


def _last_linear(model: nn.Module) -> nn.Module:
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise Unsupported("the model has no linear layer; name the module whose input to read.")
    return linear[-1]


def flat(features: list[Tensor]) -> Tensor:
    """Captured activations as one matrix ``(N, D)``; positions of a sequence are averaged."""
    rows = torch.cat(features)
    return rows.mean(1) if rows.ndim == 3 else rows.flatten(1)
