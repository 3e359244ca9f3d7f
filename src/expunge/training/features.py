"""Hidden activations by module name, captured during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Data, fixed_order
from expunge.errors import Unsupported, did_you_mean
from expunge.tasks.base import Task
from expunge.training.session import Session


@contextmanager
def captured(
    model: nn.Module, module: str | None = None, *, gradient: bool = False
) -> Iterator[list[Tensor]]:
    """Collects the input of a module at each forward pass inside the block.

    Args:
        model: any module.
        module: its dotted name; by default the last linear layer, whose input is the penultimate
            representation.
        gradient: keep what is captured attached to the graph, for an objective on representations.

    Yields:
        a list that grows by one tensor ``(N, …)`` for each forward pass.

    Raises:
        Unsupported: no such module, or no linear layer to take by default.
    """
    target = _named(model, module) if module is not None else _last_linear(model)
    found: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0] if gradient else arguments[0].detach())

    handle = target.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def watched(model: nn.Module, names: Sequence[str], *, gradient: bool = False) -> Iterator[dict[str, Tensor]]:
    """The inputs of several modules at the latest forward pass inside the block, by name.

    A module that a pass calls several times shows its last call. Shapes are ``(N, …, C)``: the channels
    of feature maps come last. With ``gradient`` they stay part of the graph, to be trained on.

    Raises:
        Unsupported: no such module.
    """
    found: dict[str, Tensor] = {}
    targets = {name: _named(model, name) for name in names}

    def keep(name: str, module: nn.Module, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        values = [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]
        if values:
            found[name] = _channels_last(module, values[0] if gradient else values[0].detach())

    handles = [
        target.register_forward_pre_hook(partial(keep, name), with_kwargs=True)
        for name, target in targets.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def depths(model: nn.Module, count: int = 4) -> tuple[str, ...]:
    """Names of at most ``count`` layers from shallow to deep, chosen by structure alone.

    Of the layers with a weight matrix (convolutions and linear ones, in order of definition) the first
    is left out, since its input is the data; of the others ``count − 1`` at evenly spaced places up to
    the last linear layer are taken, and that layer itself, whose input is the penultimate
    representation.

    Raises:
        Unsupported: the model has no linear layer.
    """
    last = _last_linear(model)
    weighted = [
        (name, module)
        for name, module in model.named_modules()
        if not list(module.children())
        and not isinstance(module, nn.Embedding)
        and getattr(getattr(module, "weight", None), "ndim", 0) > 1
    ]
    place = next(i for i, (_, module) in enumerate(weighted) if module is last)
    inner = [name for name, _ in weighted[1:place]]
    wanted = min(count - 1, len(inner))
    taken = [inner[i * len(inner) // wanted] for i in range(wanted)]
    return (*taken, weighted[place][0])


def pooled(activations: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over pixels or positions: ``(N, …, C)`` to ``(N, C)`` float32.

    Args:
        mask: ``(N, T)``, 0 at positions of ``(N, T, C)`` that are padding.
    """
    if activations.ndim == 3 and mask is not None and mask.shape == activations.shape[:2]:
        weights = mask.unsqueeze(-1).float()
        return (activations.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
    return activations.float().flatten(1, -2).mean(1) if activations.ndim > 2 else activations.float()


def sampled(n: int, limit: int) -> Tensor:
    """The rows that stand for ``n`` examples where only ``limit`` are looked at, the same for all models."""
    if n <= limit:
        return torch.arange(n)
    return torch.randperm(n, generator=seeding.generator(0, "sampled", n))[:limit].sort().values


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


def penultimate(
    model: nn.Module, data: Data, task: Task, session: Session, *, batch_size: int = 256
) -> Tensor:
    """The penultimate representation of every example, ``(N, D)`` float32 on the engine's device.

    In evaluation mode, without augmentation and without gradient, in the order of ``data.ids``.

    Cost: one forward pass over the data.
    Raises:
        Unsupported: the model has no linear layer.
    """
    rows: list[Tensor] = []
    batches = data.batches(fixed_order(len(data), batch_size), device=session.engine.torch_device)
    with session.engine.frozen(session.engine.copy(model)) as still:
        for batch in batches:
            with session.engine.autocast(), captured(still) as found:
                task.outputs(still, task.prepare(batch, None))
            rows.append(flat(found[-1:]).float())
    return torch.cat(rows)


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


def _channels_last(module: nn.Module, value: Tensor) -> Tensor:
    """Feature maps ``(N, C, …)`` as ``(N, …, C)``; the inputs of linear layers are so already."""
    if value.ndim < 2:
        return value.view(-1, 1)
    maps = isinstance(module, nn.Conv1d) if value.ndim == 3 else value.ndim > 3
    return value.movedim(1, -1) if maps and not isinstance(module, nn.Linear) else value


def flat(features: list[Tensor]) -> Tensor:
    """Captured activations as one matrix ``(N, D)``; positions of a sequence are averaged."""
    rows = torch.cat(features)
    return rows.mean(1) if rows.ndim == 3 else rows.flatten(1)
