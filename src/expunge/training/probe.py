"""A first look at a model: whether it can take the data at all, before hours of work depend on it."""

from __future__ import annotations

import torch
from torch import nn

from expunge.data.arrays import Data
from expunge.errors import DataError, ExpungeError
from expunge.tasks.base import Task
from expunge.training.engine import Engine

SIZE = 4
"""Examples in the batch that is tried."""


def probe(model: nn.Module, data: Data, task: Task, engine: Engine, name: str = "the model") -> str:
    """One forward pass on a few examples, so that inputs of the wrong shape are said in words.

    Returns:
        What the task objects to in the answers, for example their shape; empty where they fit.

    Raises:
        DataError: the model cannot take a batch of the data.
    """
    rows = torch.arange(min(SIZE, len(data)))
    (batch,) = data.batches([rows], device=engine.torch_device)
    placed = engine.copy(model)
    try:
        with engine.frozen(placed), engine.autocast():
            prepared = task.prepare(batch, None)
            outputs = task.outputs(placed, prepared)
            task.loss(outputs, prepared)
    except ExpungeError as error:
        return str(error)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in batch.items() if key != "ids")
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name} cannot take this data (a batch of {shapes}): {first.rstrip('.')}. "
            "Correct the model's sizes or the data."
        ) from None
    return ""
