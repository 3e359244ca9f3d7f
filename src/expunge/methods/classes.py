"""Which classes a split forgets whole."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.data.split import Split
from expunge.errors import Unsupported
from expunge.tasks.base import Task


def is_whole(split: Split, task: Task) -> bool:
    """Whether a split forgets whole classes and nothing else."""
    try:
        forgotten_classes(split, task)
    except Unsupported:
        return False
    return True


def forgotten_classes(split: Split, task: Task) -> Tensor:
    """The classes that the forget set holds, ``(K,)`` ascending, each with all of its training examples.

    Raises:
        Unsupported: the task has no classes, some example of such a class is retained, or no class is.
    """
    forget, retain = task.groups(split.forget), task.groups(split.retain)
    classes: Tensor = torch.unique(forget)
    for label in classes.tolist():
        left = int((retain == label).sum())
        if left:
            gone = int((forget == label).sum())
            raise Unsupported(
                f"only whole classes can be forgotten, and {left} of the {left + gone} examples of class "
                f"{label} are retained. Use a search that gives classes (class_set), or another method."
            )
    return classes
