"""Second derivatives of a loss, without a matrix: products with a vector, and solutions of systems."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.data.arrays import Batch, Data, fixed_order
from expunge.errors import Unsupported
from expunge.tasks.base import Task
from expunge.training.parameters import differentiable, zeros_like
from expunge.training.session import Event, Session

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix, as what it makes of a vector ``(P,)``."""

Kind = Literal["hessian", "gauss_newton"]


def flatten(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """The named tensors as one vector ``(P,)``, in the order of the names."""
    return torch.cat([values[name].reshape(-1) for name in names])


def unflatten(vector: Tensor, like: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The inverse of ``flatten``, in the shapes of ``like``."""
    parts = vector.split([like[name].numel() for name in names])
    return {name: part.view_as(like[name]) for name, part in zip(names, parts, strict=True)}


@contextmanager
def curvature(
    model: nn.Module,
    data: Data,
    task: Task,
    session: Session,
    *,
    names: Sequence[str],
    batch_size: int,
    kind: Kind,
) -> Iterator[Product]:
    """The product with the second derivative of ``(1/N) Σ_i ℓ_i``, ``(P,)`` to ``(P,)``, inside the block.

    ``hessian`` is exact. ``gauss_newton`` is ``(1/N) Σ_i J_iᵀ (∂²ℓ_i/∂f²) J_i`` with the Jacobian ``J_i``
    of the outputs: without negative directions where the loss is convex in the outputs, and equal to
    the Hessian where the outputs are linear in the parameters. Evaluation mode, no augmentation, and
    full precision whatever the engine's: rounding would make up negative directions.

    Cost: a product is a forward and two backward passes over the data (``hessian``), or a forward and
    three (``gauss_newton``).
    """
    order = fixed_order(len(data), batch_size)
    multiply = _hessian if kind == "hessian" else _gauss_newton
    # the fused attention kernels have no second derivative
    with differentiable(model, names) as chosen, sdpa_kernel(SDPBackend.MATH):

        def product(vector: Tensor) -> Tensor:
            parts = [
                p.view_as(w) for p, w in zip(vector.split([w.numel() for w in chosen]), chosen, strict=True)
            ]
            total = torch.zeros_like(vector)
            for batch in data.batches(order, device=session.engine.torch_device):
                batch = task.prepare(batch, None)
                found = multiply(model, batch, task, chosen, parts)
                filled = [torch.zeros_like(w) if g is None else g for g, w in zip(found, chosen, strict=True)]
                total += torch.cat([g.reshape(-1) for g in filled]) * (len(batch["ids"]) / len(data))
            return total

        yield product


def _hessian(
    model: nn.Module, batch: Batch, task: Task, chosen: list[nn.Parameter], vector: list[Tensor]
) -> Sequence[Tensor | None]:
    loss = task.loss(task.outputs(model, batch), batch).mean()
    first = torch.autograd.grad(loss, chosen, create_graph=True, allow_unused=True)
    along = [(g * v).sum() for g, v in zip(first, vector, strict=True) if g is not None]
    return torch.autograd.grad(torch.stack(along).sum(), chosen, allow_unused=True)


def _gauss_newton(
    model: nn.Module, batch: Batch, task: Task, chosen: list[nn.Parameter], vector: list[Tensor]
) -> Sequence[Tensor | None]:
    outputs = task.outputs(model, batch)
    dual = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, chosen, dual, create_graph=True, allow_unused=True)
    along = [(g * v).sum() for g, v in zip(pulled, vector, strict=True) if g is not None]
    (pushed,) = torch.autograd.grad(torch.stack(along).sum(), dual, retain_graph=True)  # J v
    free = outputs.detach().requires_grad_(True)
    loss = task.loss(free, batch).mean()
    (first,) = torch.autograd.grad(loss, free, create_graph=True)
    (second,) = torch.autograd.grad(first, free, pushed)
    return torch.autograd.grad(outputs, chosen, second, allow_unused=True)


class Solution(NamedTuple):
    """``x`` with ``A x ≈ b``, how many products it took, and ``‖b − A x‖ / ‖b‖``."""

    value: Tensor
    iterations: int
    residual: float


def conjugate_gradient(
    product: Product, target: Tensor, *, damping: float, tolerance: float, iterations: int
) -> Solution:
    """Solves ``(A + δ I) x = b`` for a positive definite ``A + δ I``, from ``x = 0``.

    Stops at a relative residual of ``tolerance`` or after so many ``iterations``, whose ``x`` is the best
    in the directions seen so far.

    Raises:
        Unsupported: a direction of negative or no curvature.
    """
    value, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual @ residual
    start, done = float(square.sqrt()), 0
    while done < iterations and float(square.sqrt()) > tolerance * start:
        image = product(direction) + damping * direction
        bend = direction @ image
        if not bend > 0:
            raise Unsupported(
                f"the second derivative of the loss is {float(bend / direction.square().sum()):.2g} along a "
                f"direction, damping {damping:g} included, and must be positive. Use curvature=gauss_newton "
                "or a larger damping."
            )
        length = square / bend
        value += length * direction
        residual -= length * image
        before, square = square, residual @ residual
        direction = residual + (square / before) * direction
        done += 1
    return Solution(value, done, float(square.sqrt()) / start if start > 0 else 0.0)


def woodbury(gradients: Iterable[Tensor], target: Tensor, *, damping: float, count: int) -> Tensor:
    """``(δ I + (1/n) Σ_k g_k g_kᵀ)⁻¹ b`` by ``n`` rank-one updates of the inverse.

    With ``A_0 = δ I``: ``o_k = A_{k−1}⁻¹ g_k``, ``s_k = n + g_kᵀ o_k``,
    ``A_k⁻¹ = A_{k−1}⁻¹ − o_k o_kᵀ / s_k``. Every ``o_k`` has to be kept, as they are all that is known of
    the inverse.

    Args:
        gradients: ``n`` vectors ``(P,)``.
        target: ``b``, ``(P,)``.
        count: ``n``.

    Cost: ``n`` vectors of memory, ``2 n² P`` multiplications.
    """
    rows = target.new_empty(count, len(target))  # o_k / √s_k
    value = target / damping
    for k, gradient in enumerate(gradients):
        known = rows[:k]
        image = gradient / damping - known.T @ (known @ gradient)
        scale = count + gradient @ image
        value = value - image * ((gradient @ value) / scale)
        rows[k] = image / scale.sqrt()
    return value


def fisher_diagonal(
    model: nn.Module, data: Data, task: Task, session: Session, *, names: Sequence[str], batch_size: int
) -> dict[str, Tensor]:
    """``F_j = (1/N) Σ_i Σ_y p(y | x_i) (∂ log p(y | x_i) / ∂θ_j)²`` of a classifier.

    The labels are the model's own, with its probabilities; those of the data are not read. Evaluation
    mode, no augmentation, full precision whatever the engine's.

    Cost: one forward and ``C`` backward passes over the data; ``2 · batch_size`` copies of the parameters.
    """
    classifier = _LogProbabilities(model, task)
    weights = {f"model.{name}": p.detach() for name, p in model.named_parameters() if name in set(names)}
    total = zeros_like(model, names)
    order = fixed_order(len(data), batch_size)

    def information(example: Batch) -> dict[str, Tensor]:
        batch = {name: value[None] for name, value in example.items()}
        pulled: Any = vjp(lambda w: functional_call(classifier, w, (batch,))[0], weights)
        log_p, pull = pulled  # (C,)
        found: dict[str, Tensor] = {}
        for label in torch.eye(len(log_p), device=log_p.device):
            (gradients,) = pull(label)
            chance = (label * log_p.exp()).sum()
            for name, gradient in gradients.items():
                found[name] = found.get(name, 0) + chance * gradient.square()
        return found

    with session.engine.frozen(model):
        for index, batch in enumerate(data.batches(order, device=session.engine.torch_device)):
            with torch.enable_grad():
                found = vmap(information)(task.prepare(batch, None))
            for name in names:
                total[name] += found[f"model.{name}"].sum(0) / len(data)
            session.emit(Event("step", "fisher", index + 1, len(order)))
    return total


class _LogProbabilities(nn.Module):
    """A batch to ``log p(y | x)``, ``(N, C)``."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> Tensor:
        return self.task.outputs(self.model, batch).float().log_softmax(-1)
