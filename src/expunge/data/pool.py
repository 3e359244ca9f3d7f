"""Two data sets as one, for models that are trained on random parts of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from expunge.data.arrays import ArrayData, Data
from expunge.data.stream import StreamData
from expunge.errors import DataError


def pooled(first: Data, second: Data) -> Data:
    """A new root data set: the examples of ``first``, then those of ``second``; ids ``0..N + M - 1``.

    Unlike ``Data.joined`` it takes parts of different root data sets, and the examples get new ids.
    Arrays are copied, and all of them have the augmentation of ``first``; the examples of streams keep
    the transforms that each has.

    Raises:
        DataError: the two are of different kinds, or arrays differ in their columns.
    """
    if isinstance(first, ArrayData) and isinstance(second, ArrayData):
        mine, others = _columns(first), _columns(second)
        if list(mine) != list(others):
            raise DataError(
                f"the data sets cannot be pooled: one has the columns {', '.join(mine)}, "
                f"the other {', '.join(others)}."
            )
        for name, values in mine.items():
            other = others[name]
            if values.dtype != other.dtype or values.shape[1:] != other.shape[1:]:
                raise DataError(
                    f"the data sets cannot be pooled: the '{name}' is {values.dtype} of shape "
                    f"{tuple(values.shape[1:])} in one, {other.dtype} of {tuple(other.shape[1:])} in another."
                )
        columns = {name: torch.cat([values, others[name]]) for name, values in mine.items()}
        return ArrayData(columns, first.augment, first.class_names)
    if isinstance(first, StreamData) and isinstance(second, StreamData):
        return _streams(first, second)
    raise DataError(
        f"{type(first).__name__} and {type(second).__name__} cannot be pooled. Give two of the same kind."
    )


def _columns(data: ArrayData) -> dict[str, Tensor]:
    names = sorted(data._storage.columns)
    return {name: data.column(name) for name in names}


def _streams(first: StreamData, second: StreamData) -> StreamData:
    both = (first, second)
    drawn: ConcatDataset[Any] = ConcatDataset([Subset(d._dataset, d.ids.tolist()) for d in both])
    plain: ConcatDataset[Any] = ConcatDataset([Subset(d._plain, d.ids.tolist()) for d in both])
    return StreamData(drawn, first._collate, first._workers, plain)
