"""Pure functions on the parameters of a model and on ``{name: Tensor}``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data, fixed_order
from expunge.errors import CheckpointError, DataError
from expunge.tasks.base import Task
from expunge.training.session import Event, Session

Measure = Callable[[Tensor, Batch], Tensor]
"""A number for each example, ``(N,)``, from the model's outputs and the batch; the loss is one."""


def check_finite(model: nn.Module, name: str = "the model") -> None:
    """Refuses a model with NaN or infinite weights.

    Raises:
        CheckpointError: names the first such tensor.
    """
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise CheckpointError(
                f"{name}: '{key}' holds {bad} NaN or infinite value(s). Load a sound checkpoint."
            )


@contextmanager
def differentiable(model: nn.Module, names: Sequence[str]) -> Iterator[list[nn.Parameter]]:
    """The named parameters, requiring gradients, of a model in evaluation mode; then all is as it was."""
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in names]
    modes = {module: module.training for module in model.modules()}
    flags = [parameter.requires_grad for parameter in chosen]
    model.eval()
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield chosen
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, flag in zip(chosen, flags, strict=True):
            parameter.requires_grad_(flag)


def batch_gradients(
    model: nn.Module,
    data: Data,
    task: Task,
    session: Session,
    *,
    names: Sequence[str],
    batch_size: int,
    generator: torch.Generator | None = None,
    measure: Measure | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """``∇ mean_{i∈B} ℓ_i`` of each batch, with the number of its examples.

    The model is in evaluation mode and the examples are not augmented. They come in their own order,
    or with ``generator`` in a random one. The model is left as it was. A parameter that the loss does
    not reach has no gradient there.

    Args:
        measure: what is differentiated in the place of the task's loss.

    Cost: one forward and backward pass over the data.
    """
    measure = measure or task.loss
    order = fixed_order(len(data), batch_size)
    if generator is not None:
        order = data.random_order(batch_size, generator)
    with differentiable(model, names) as chosen:
        for index, batch in enumerate(data.batches(order, device=session.engine.torch_device)):
            batch = task.prepare(batch, None)
            with session.engine.autocast():
                outputs = task.outputs(model, batch)
            found = torch.autograd.grad(measure(outputs, batch).mean(), chosen, allow_unused=True)
            yield len(batch["ids"]), {n: g for n, g in zip(names, found, strict=True) if g is not None}
            session.emit(Event("step", "gradients", index + 1, len(order)))


def gradient_sum(
    model: nn.Module,
    data: Data,
    task: Task,
    session: Session,
    *,
    names: list[str],
    batch_size: int,
    generator: torch.Generator | None = None,
    measure: Measure | None = None,
    transform: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> tuple[dict[str, Tensor], int]:
    """``Σ_B transform(∇ mean_{i∈B} ℓ_i)`` over the batches of the data, and their number.

    Cost: one forward and backward pass over the data; one copy of the parameters.
    """
    total, batches = zeros_like(model, names), 0
    found = batch_gradients(
        model,
        data,
        task,
        session,
        names=names,
        batch_size=batch_size,
        generator=generator,
        measure=measure,
    )
    for _, gradients in found:
        batches += 1
        for name, gradient in gradients.items():
            total[name] += transform(gradient)
    return total, batches


def mean_gradient(
    model: nn.Module, data: Data, task: Task, session: Session, *, names: Sequence[str], batch_size: int
) -> dict[str, Tensor]:
    """``(1/N) Σ_i ∇ℓ_i`` over the examples, whatever the batch size.

    Cost: one forward and backward pass over the data; one copy of the parameters.
    """
    total = zeros_like(model, names)
    for size, gradients in batch_gradients(model, data, task, session, names=names, batch_size=batch_size):
        for name, gradient in gradients.items():
            total[name] += gradient * (size / len(data))
    return total


def importance(
    model: nn.Module,
    data: Data,
    task: Task,
    session: Session,
    *,
    names: list[str],
    batch_size: int,
    generator: torch.Generator | None = None,
    measure: Measure | None = None,
    transform: Callable[[Tensor], Tensor] = torch.square,
) -> dict[str, Tensor]:
    """``I_j = mean_B (∂ mean_{i∈B} ℓ_i / ∂θ_j)²``: the diagonal Fisher of batches of that size.

    With ``batch_size=1`` it is the empirical Fisher information; larger batches make it smaller
    where the gradients of examples disagree. ``measure`` and ``transform`` take the place of the loss
    and of the square.
    """
    total, batches = gradient_sum(
        model,
        data,
        task,
        session,
        names=names,
        batch_size=batch_size,
        generator=generator,
        measure=measure,
        transform=transform,
    )
    return {name: value / batches for name, value in total.items()}


def zeros_like(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Zeros in the shapes of the named parameters."""
    parameters = dict(model.named_parameters())
    return {name: torch.zeros_like(parameters[name]) for name in names}


def largest(values: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Boolean masks of the largest ``fraction`` of all elements, ranked together.

    Exactly that many, rounded: of equal elements those that come first are taken. The threshold is
    found by ``kthvalue``, as ``torch.quantile`` refuses more than 2**24 elements.
    """
    flat = torch.cat([value.flatten() for value in values.values()])
    keep = round(fraction * flat.numel())
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    if keep > 0:
        threshold = flat.kthvalue(flat.numel() - keep + 1).values
        chosen = flat > threshold
        ties = (flat == threshold).nonzero()[:, 0]
        chosen[ties[: keep - int(chosen.sum())]] = True
    parts = chosen.split([value.numel() for value in values.values()])
    return {name: part.view_as(value) for part, (name, value) in zip(parts, values.items(), strict=True)}


def inner(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """``Σ_j a_j b_j`` over the names that both have. A scalar."""
    products = [(first[name] * second[name]).sum() for name in first if name in second]
    if not products:
        raise DataError("the two sets of tensors share no name.")
    return torch.stack(products).sum()


@torch.no_grad()
def distance(first: nn.Module, second: nn.Module) -> float:
    """``‖θ_1 − θ_2‖₂`` over all parameters."""
    others = dict(second.named_parameters())
    squares = [(p - others[name]).square().sum() for name, p in first.named_parameters()]
    return float(torch.stack(squares).sum().sqrt())


def shared_tensors(first: nn.Module, second: nn.Module) -> list[str]:
    """Names of the parameters with equal values in both models: empty for an honest retraining."""
    others = dict(second.named_parameters())
    return [n for n, p in first.named_parameters() if n in others and torch.equal(p, others[n])]
