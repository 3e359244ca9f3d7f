"""What a forget set is made of: examples, classes, all records of a subject, all images of a concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.data.arrays import Data
from expunge.errors import ConfigError, DataError
from expunge.tasks.base import Task

Unit = Literal["example", "class", "subject", "prompt", "style", "object"]

COLUMNS = {"subject": "subjects", "prompt": "prompts", "style": "style", "object": "object"}
"""Columns of a data set that say to which subject, prompt or concept an example belongs."""


@dataclass(frozen=True)
class Units:
    """A data set in pieces that are forgotten whole.

    Args:
        unit: what a piece is.
        of: the piece of each example, ``(N,)`` in ``0..U−1``.
        names: what the data calls the pieces, ``(U,)``.
    """

    unit: Unit
    of: Tensor
    names: Tensor

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def read(cls, data: Data, task: Task, unit: Unit) -> Units:
        """The pieces of a data set.

        Raises:
            DataError: no column that says to which subject, prompt or concept an example belongs.
            Unsupported: classes, where the task has none.
        """
        if unit == "example":
            rows = torch.arange(len(data))
            return cls(unit, rows, data.ids)
        if unit == "class":
            values = task.groups(data)
        else:
            try:
                values = data.column(COLUMNS[unit])
            except DataError:
                raise DataError(
                    f"the training data does not say which {unit} an example belongs to: it has no column "
                    f"'{COLUMNS[unit]}'. Add it, or use unit=example."
                ) from None
            if values.ndim != 1:
                raise DataError(
                    f"column '{COLUMNS[unit]}' must hold one {unit} for each example, got the shape "
                    f"{tuple(values.shape)}."
                )
        names, of = torch.unique(values, return_inverse=True)
        return cls(unit, of, names)

    def count(self, size: int | float) -> int:
        """How many pieces ``size`` asks for.

        Raises:
            DataError: as many as there are, or more.
        """
        wanted = size if isinstance(size, int) else max(1, round(size * len(self)))
        if wanted >= len(self):
            what = {"class": "classes"}.get(self.unit, f"{self.unit}s")
            raise DataError(
                f"a forget set of {wanted} {what} leaves nothing to keep: the data has {len(self)} {what}. "
                f"Ask for at most {len(self) - 1}."
            )
        return wanted

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the examples of each piece, ``(N,)`` to ``(U,)`` float64."""
        sums = torch.zeros(len(self), dtype=torch.float64).index_add_(0, self.of, values.double())
        return sums / torch.bincount(self.of, minlength=len(self))

    def rows(self, chosen: Tensor) -> Tensor:
        """The examples of these pieces, ascending."""
        return torch.isin(self.of, chosen).nonzero()[:, 0]


def check_size(size: int | float) -> None:
    """Refuses a size that can fit no data set.

    Raises:
        ConfigError: not a number of units ≥ 1 nor a fraction in (0, 1).
    """
    if (isinstance(size, float) and not 0 < size < 1) or (isinstance(size, int) and size < 1):
        raise ConfigError(
            f"is a number of units (an integer of at least 1) or a fraction between 0 and 1, got {size}.",
            "size",
        )
