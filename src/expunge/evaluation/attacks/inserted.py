"""Tokens put into prompts: real ones, or vectors that no token has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.data.text import IGNORED
from expunge.errors import Unsupported
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM


def embedding(model: nn.Module, task: Task) -> nn.Embedding:
    """The layer that turns tokens into vectors.

    Raises:
        Unsupported: there is none for the task's vocabulary.
    """
    owner: Any = model
    found = owner.get_input_embeddings() if hasattr(owner, "get_input_embeddings") else None
    size = task.vocabulary if isinstance(task, CausalLM) else 0
    if not isinstance(found, nn.Embedding):
        layers = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        found = next((layer for layer in layers if layer.num_embeddings >= size), None)
    if found is None or not size:
        raise Unsupported("the model has no embedding of the task's tokens. Give a causal language model.")
    return found


def ends(data: Data) -> int:
    """How many tokens all prompts end with alike: what a template puts after a question.

    At most all but the first token of the shortest prompt.
    """
    ids, labels = data.column("input_ids"), data.column("labels")
    prompts = [
        row[: int((label != IGNORED).nonzero()[0])].tolist() for row, label in zip(ids, labels, strict=True)
    ]
    most = max(min(map(len, prompts)) - 1, 0)
    return next((i for i in range(most) if len({prompt[-1 - i] for prompt in prompts}) > 1), most)


def places(batch: Batch, before: int | None) -> Tensor:
    """Where tokens are inserted, a column for each example: ``before`` tokens ahead of the first label.

    None is the start of the prompt. In a text without a prompt it is after the first token, which has a label
    that nothing predicts.
    """
    first = (batch["labels"] != IGNORED).long().argmax(1)
    if before is None:
        return (first == 0).long()
    return (first - before).clamp(min=1)


def inserted(batch: Batch, tokens: Tensor, at: Tensor) -> tuple[Batch, Tensor]:
    """The batch with ``tokens`` ``(K,)`` in every example, and where they stand, ``(N, T + K)``.

    Args:
        at: the column that the first of them gets in each example, ``(N,)``.
    """
    count, size = len(tokens), batch["input_ids"].shape[1]
    column = torch.arange(size + count, device=at.device).expand(len(at), -1)
    inside = (column >= at[:, None]) & (column < at[:, None] + count)
    source = torch.where(column < at[:, None], column, (column - count).clamp(min=0)).clamp(max=size - 1)
    columns = [name for name in ("input_ids", "labels", "attention_mask") if name in batch]
    new: Batch = {name: batch[name].gather(1, source) for name in columns}
    repeated = tokens.to(at.device)[(column - at[:, None]).clamp(0, count - 1)]
    new["input_ids"] = torch.where(inside, repeated, new["input_ids"])
    new["labels"] = new["labels"].masked_fill(inside, IGNORED)
    if "attention_mask" in new:
        new["attention_mask"] = new["attention_mask"].masked_fill(inside, 1)
    return {**batch, **new}, inside


@contextmanager
def embedded(layer: nn.Embedding, vectors: Tensor, inside: Tensor) -> Iterator[None]:
    """Inside, the tokens at ``inside`` ``(N, T)`` have the embeddings ``vectors`` ``(K, D)``, in order."""

    def put(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if output.shape[:2] != inside.shape:
            return None  # another pass than the one meant
        rows = (inside.long().cumsum(1) - 1).clamp(min=0)
        return torch.where(inside[..., None], vectors.to(output.dtype)[rows], output)

    handle = layer.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
