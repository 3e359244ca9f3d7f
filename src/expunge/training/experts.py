"""Experts and routers of mixture-of-experts models, found by structure, and which experts a text uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data, fixed_order
from expunge.errors import Unsupported
from expunge.tasks.base import Task
from expunge.training.blocks import blocks
from expunge.training.session import Session
from expunge.training.slices import PART


@dataclass(frozen=True)
class Bank:
    """The experts of one block and their router.

    Args:
        block: the block's number.
        experts: name of the module that holds them: an ``nn.ModuleList``, or parameters whose first
            dimension is the expert.
        router: name of the module with a row of weights for each expert.
        count: number of experts.
    """

    block: int
    experts: str
    router: str
    count: int


def banks(model: nn.Module) -> list[Bank]:
    """The experts of every block that has them.

    A bank is a module with at least two parameters of three dimensions that agree in the first, or an
    ``nn.ModuleList`` of modules of one class; its router is the module beside it whose weight has one row
    for each expert.

    Raises:
        Unsupported: the model has none.
    """
    found = []
    for number, (name, block) in enumerate(blocks(model)):
        for path, parent in block.named_modules():
            place = f"{name}.{path}".rstrip(".")
            for key, child in parent.named_children():
                count = _count(child)
                routers = [k for k, m in parent.named_children() if m is not child and _rows(m) == count]
                if count > 1 and routers:
                    found.append(Bank(number, f"{place}.{key}", f"{place}.{routers[0]}", count))
    if not found:
        raise Unsupported(
            "the model is no mixture of experts: no block has experts with a router beside them. "
            "Use the scope feed_forward, or a model that has experts."
        )
    return found


@contextmanager
def routed(model: nn.Module, found: Sequence[Bank]) -> Iterator[list[Tensor]]:
    """The routers' probabilities at the latest forward pass inside the block, ``(tokens, experts)`` each.

    They are the softmax over all experts, whatever the model does with the logits afterwards.
    """
    seen = [torch.empty(0)] * len(found)

    def keep(index: int, output: object) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        if not isinstance(logits, Tensor) or logits.shape[-1] != found[index].count:
            raise Unsupported(
                f"the router '{found[index].router}' does not return its logits first. "
                "Use the scope modules with the names of an expert's parameters."
            )
        seen[index] = logits.float().softmax(-1).flatten(0, -2)

    handles = [
        model.get_submodule(bank.router).register_forward_hook(lambda _, __, out, i=i: keep(i, out))
        for i, bank in enumerate(found)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def on_text(probabilities: Tensor, batch: Batch) -> Tensor:
    """The rows ``(tokens, experts)`` that are no padding."""
    mask = batch.get("attention_mask")
    return probabilities if mask is None else probabilities[mask.flatten().bool()]


def chosen(
    model: nn.Module,
    data: Data,
    task: Task,
    session: Session,
    *,
    batch_size: int,
    block: int | None = None,
    expert: int | None = None,
) -> tuple[Bank, int]:
    """The expert with the largest mean router probability over the tokens of the data, padding left out.

    Args:
        block: look in this block alone; by default in all.
        expert: take this one, in the block where it is used most.

    Raises:
        Unsupported: the model is no mixture of experts, or has no such block or expert.
    """
    found = [bank for bank in banks(model) if block is None or bank.block == block]
    found = [bank for bank in found if expert is None or 0 <= expert < bank.count]
    if not found:
        there = ", ".join(f"block {bank.block} has {bank.count}" for bank in banks(model))
        raise Unsupported(
            f"there are no experts where block is {block} and expert is {expert}. Give others: {there}."
        )
    sums, tokens = [torch.zeros(bank.count) for bank in found], 0
    batches = data.batches(fixed_order(len(data), batch_size), device=session.engine.torch_device)
    with session.engine.frozen(model), routed(model, found) as seen:
        for batch in batches:
            with session.engine.autocast():
                task.outputs(model, task.prepare(batch, None))
            rows = [on_text(values, batch) for values in seen]
            sums = [total + values.sum(0).cpu() for total, values in zip(sums, rows, strict=True)]
            tokens += len(rows[0])
    best = [float(total.max() if expert is None else total[expert]) for total in sums]
    bank = best.index(max(best))
    return found[bank], int(sums[bank].argmax()) if expert is None else expert


def _count(module: nn.Module) -> int:
    """How many experts a module holds; 0 where it is no bank of them."""
    if isinstance(module, nn.ModuleList):
        parts = list(module.children())
        return len(parts) if len({type(part) for part in parts}) == 1 else 0
    own = [getattr(module, key) for key in module._parameters if not key.endswith(PART)]
    own = [parameter for parameter in own if parameter is not None]
    stacked = [parameter for parameter in own if parameter.ndim == 3]
    sizes = {parameter.shape[0] for parameter in own}
    return sizes.pop() if len(stacked) > 1 and len(sizes) == 1 else 0


def _rows(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else 0
