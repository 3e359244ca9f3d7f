"""Other answers that a method trains towards, looked for before anything is trained."""

from __future__ import annotations

from expunge.data.arrays import fixed_order
from expunge.data.split import Split
from expunge.tasks.base import Task


def check_answers(split: Split, task: Task, name: str) -> None:
    """Refuses a task or a forget set without other answers of this name.

    Raises:
        Unsupported: as ``Task.instead``, with the names that there are.
    """
    (batch,) = split.forget.batches(fixed_order(1, 1), device="cpu")
    task.instead(batch, name)
