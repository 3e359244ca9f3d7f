"""Which value vectors of the feed-forward layers hold what is to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import Unsupported
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.session import Session


def concept_vectors(
    model: nn.Module,
    matrices: Sequence[tuple[str, int]],
    split: Split,
    task: Task,
    session: Session,
    *,
    count: int,
    batch_size: int,
) -> dict[str, tuple[int, list[int]]]:
    """The ``count`` columns with the largest ``F_f / (F_r + mean F_r)``: by matrix its ``dim`` and the units.

    ``F`` is the squared gradient of the mean loss of a batch, summed over the column and averaged over
    batches. The mean keeps columns from winning by a retain gradient of almost 0.

    Args:
        matrices: to choose from, as ``training.blocks.value_matrices`` has them.

    Cost: one forward and backward pass over all data.

    Raises:
        Unsupported: fewer columns than asked for.
    """
    names = [name for name, _ in matrices]

    def squares(part: str) -> dict[str, Tensor]:
        found = parameters.importance(
            model, getattr(split, part), task, session, names=names, batch_size=batch_size
        )
        return {name: found[name].sum(1 - dim) for name, dim in matrices}

    forget, retain = squares("forget"), squares("retain")
    mean = torch.cat(list(retain.values())).mean()
    scores = {name: forget[name] / (retain[name] + mean) for name in names}
    total = sum(len(score) for score in scores.values())
    if count > total:
        raise Unsupported(f"asked for {count} of {total} value vectors. Set count lower.")
    chosen = parameters.largest(scores, count / total)
    return {
        name: (dim, chosen[name].nonzero()[:, 0].tolist()) for name, dim in matrices if chosen[name].any()
    }
