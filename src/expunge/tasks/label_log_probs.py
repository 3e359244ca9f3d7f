"""The log-probabilities of labels under an output layer, without the logits of all tokens at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEPT = 10 * 2**20
"""Numbers that one loss may keep for its gradient, 40 MiB; where there are more, E is computed twice."""


def serves(head: object, hidden: Tensor) -> bool:
    """Whether the head is a plain linear layer, of the type of the hidden states, that nothing listens to."""
    return (
        type(head) is nn.Linear
        and type(head.weight) is nn.Parameter
        and head.weight.dtype == hidden.dtype
        and not (head._forward_hooks or head._forward_pre_hooks or head._backward_hooks)
        and not torch.is_autocast_enabled(hidden.device.type)
    )


def label_log_probs(hidden: Tensor, head: nn.Linear, labels: Tensor, size: int) -> Tensor:
    """``log softmax(W h + b)`` at the labels, ``(M,)`` in float32, of hidden states ``(M, D)``.

    Computed by chunks of ``size`` tokens. With ``E = softmax(W h + b) − onehot(y)`` ``(M, V)`` and ``g``
    ``(M,)`` the gradient of the result, ``∂h = −g ∘ (E W)``, ``∂W = −Eᵀ (g ∘ h)`` and ``∂b = −Eᵀ g``: nothing
    but products. What is kept for them is ``E W`` ``(M, D)`` where the layer is frozen; else ``E``, if it is
    at most ``KEPT`` numbers; else nothing, and ``E`` is computed anew.
    """
    apply: Callable[..., Tensor] = _LabelLogProbs.apply
    return apply(hidden, head.weight, head.bias, labels, size)


class _LabelLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, size: int
    ) -> Tensor:
        frozen = not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        few = len(hidden) * len(weight) <= KEPT
        values = hidden.new_empty(len(hidden), dtype=torch.float32)
        products = torch.empty_like(hidden) if frozen else None
        kept = hidden.new_empty(len(hidden), len(weight)) if few and not frozen else None
        for rows in _chunks(len(hidden), size):
            into = None if kept is None else kept[rows]
            values[rows], errors = _chunk(hidden[rows], weight, bias, labels[rows], into)
            if products is not None:
                products[rows] = errors @ weight
        ctx.size = size
        ctx.save_for_backward(hidden, weight, bias, labels, products, kept)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        hidden, weight, bias, labels, products, kept = ctx.saved_tensors
        needed, (g,) = ctx.needs_input_grad, gradients
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            return _differentiable(g, hidden, weight, bias, labels, needed)
        scale = -g.to(hidden.dtype)[:, None]
        if products is not None:
            return scale * products, None, None, None, None
        to_hidden = torch.empty_like(hidden) if needed[0] else None
        to_weight = torch.zeros_like(weight) if needed[1] else None
        to_bias = torch.zeros_like(bias) if needed[2] else None
        for rows in _chunks(len(hidden), ctx.size):
            errors = _chunk(hidden[rows], weight, bias, labels[rows], None)[1] if kept is None else kept[rows]
            if to_hidden is not None:
                to_hidden[rows] = (errors @ weight).mul_(scale[rows])
            if to_weight is not None:
                to_weight.addmm_(errors.T, scale[rows] * hidden[rows])
            if to_bias is not None:
                to_bias.add_(errors.T @ scale[rows, 0])
        return to_hidden, to_weight, to_bias, None, None


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, into: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The log-probabilities ``(m,)`` and the errors ``softmax − onehot`` ``(m, V)`` of some tokens."""
    logits = F.linear(hidden, weight, bias).float()
    highest = logits.max(-1, keepdim=True)
    own = labels[:, None]
    values = logits.gather(-1, own) - highest.values
    reused = into if into is not None and into.dtype == torch.float32 else logits
    errors = torch.softmax(logits, -1, out=reused)
    values += errors.gather(-1, highest.indices).log()  # the highest is exp(0) / Σ exp(l − max)
    errors.scatter_add_(-1, own, torch.full_like(values, -1.0))
    if into is not None and reused is not into:
        errors = into.copy_(errors)
    return values[:, 0], errors.to(hidden.dtype)


def _differentiable(
    g: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    inputs = [x for x, wanted in zip((hidden, weight, bias), needed, strict=False) if wanted]
    values = -F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="none")
    found = iter(torch.autograd.grad(values, inputs, g, create_graph=True))  # type: ignore[arg-type]
    return (*(next(found) if wanted else None for wanted in needed[:3]), None, None)
