"""The hidden states between the blocks of a language model: read, and put in the place of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data, fixed_order
from expunge.data.text import TextData
from expunge.errors import Unsupported
from expunge.evaluation import language
from expunge.evaluation.evidence import Evidence
from expunge.tasks.base import Task
from expunge.training.blocks import blocks
from expunge.training.engine import Engine

Wrong = Literal["perturbed", "alternate"]
"""Which wrong answers a right one is told from."""


@contextmanager
def reading(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of blocks at the latest forward pass inside, each ``(N, T, D)``."""
    found = [torch.empty(0)] * len(layers)

    def keep(place: int, _: nn.Module, __: object, output: Any) -> None:
        found[place] = (output[0] if isinstance(output, tuple) else output).detach()

    handles = [layer.register_forward_hook(partial(keep, i)) for i, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def patched(layer: nn.Module, states: Tensor, where: Tensor | None = None) -> Iterator[None]:
    """Inside, a block's output is ``states`` ``(N, T, D)``, at the positions ``where`` ``(N, T)`` or all."""

    def put(_: nn.Module, __: object, output: Any) -> Any:
        own = output[0] if isinstance(output, tuple) else output
        new = states.to(own) if where is None else torch.where(where[..., None], states.to(own), own)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = layer.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a language model, from the input to the output.

    Raises:
        Unsupported: there is no list of blocks.
    """
    return [block for _, block in blocks(model)]


def batches(evidence: Evidence, data: Data, answer: str = "") -> Iterator[Batch]:
    """The examples in order, with another answer in place where one is named."""
    task, engine = evidence.task, evidence.session.engine
    order = fixed_order(len(data), task.batch_size(data))
    for batch in data.batches(order, device=engine.torch_device):
        yield task.prepare(task.instead(batch, answer) if answer else batch, None)


def states(model: nn.Module, batch: Batch, task: Task, engine: Engine) -> tuple[Any, list[Tensor]]:
    """What the model says of a batch, and the output of each of its blocks ``(N, T, D)``."""
    with reading(layers(model)) as found, engine.autocast():
        said = task.said(model, batch)
    shape = batch["input_ids"].shape
    if not all(values.ndim == 3 and values.shape[:2] == shape for values in found):
        raise Unsupported(
            "a block of the model does not give one vector for each token. Give a language model whose "
            "blocks pass hidden states (examples, tokens, width) on."
        )
    return said, found


def parting(
    data: TextData, part: str, against: Wrong
) -> tuple[str, list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Where right and wrong answers differ, in tokens.

    Args:
        against: ``perturbed``: the paraphrase where there is one (else the answer) and the wrong answers
            whose names begin with ``perturbed_``; ``alternate``: the answer itself and that other one.

    Returns:
        the names of the right answer and of the wrong ones; the first column of each example in which some
        of them differ, and the column after the last one of the right answer, ``(N,)`` each: their common
        beginning and end are left out.

    Raises:
        Unsupported: the data has no such answers, or they do not differ after a common beginning.
    """
    if against == "perturbed":
        right, wrong = language.right_answer(data), language.wrong_answers(data, part)
    elif against in data.names:
        right, wrong = "", [against]
    else:
        raise Unsupported(
            f"the {part} data has no '{against}' answers; it has: {', '.join(data.names) or 'none'}. Give "
            f"every record one in answers={{'{against}': …}}, or choose others to tell the right one from."
        )
    rows = {name: _rows(data, name) for name in (right, *wrong)}
    starts, ends = np.zeros(len(data), np.int64), np.zeros(len(data), np.int64)
    for i in range(len(data)):
        texts = [rows[name][i] for name in (right, *wrong)]
        if any(len(text) == 0 for text in texts):
            raise Unsupported(f"{part} example {int(data.ids[i])} lacks a wrong answer that others have.")
        start = _common(texts)
        end = _common([text[start:][::-1] for text in texts])
        starts[i], ends[i] = start, max(len(texts[0]) - end, start + 1)
        if start == 0 or start >= min(map(len, texts)):
            raise Unsupported(
                f"the answers of {part} example {int(data.ids[i])} do not differ after a common beginning. "
                "Give wrong answers to the same question."
            )
    return right, wrong, starts, ends


def _rows(data: TextData, name: str) -> list[list[int]]:
    prefix = f"{name}." if name else ""
    ids, lengths = data.column(f"{prefix}input_ids"), data.column(f"{prefix}lengths")
    return [row[:length].tolist() for row, length in zip(ids, lengths.tolist(), strict=True)]


def _common(texts: Sequence[list[int]]) -> int:
    """How many tokens all begin with."""
    shortest = min(map(len, texts))
    return next((i for i in range(shortest) if len({text[i] for text in texts}) > 1), shortest)
