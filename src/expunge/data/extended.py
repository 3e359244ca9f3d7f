"""A data set with further columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor

from expunge.data.arrays import Batch, Data, digest
from expunge.errors import DataError


class Extended(Data):
    """The examples of ``data`` with columns that it lacks.

    The ids stay, and nothing of ``data`` is copied.

    Args:
        data: any data set.
        columns: further values by column, ``(N, …)`` in the order of ``data.ids``.

    Raises:
        DataError: another number of values, or the name ``ids``.
    """

    def __init__(self, data: Data, columns: Mapping[str, Tensor]) -> None:
        for name, values in columns.items():
            if name == "ids" or len(values) != len(data):
                raise DataError(f"column '{name}' has {len(values)} rows for {len(data)} examples.")
        order = data.ids.argsort()
        self.ids, self._data = data.ids, data
        self._known = data.ids[order]
        self._columns = {name: values[order] for name, values in columns.items()}

    @property
    def augmented(self) -> bool:
        return self._data.augmented

    def batches(
        self,
        order: Iterable[Tensor],
        *,
        device: torch.device | str,
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        for batch in self._data.batches(order, device=device, generator=generator):
            rows = torch.searchsorted(self._known, batch["ids"].cpu())
            yield {**batch, **{name: values[rows].to(device) for name, values in self._columns.items()}}

    def column(self, name: str) -> Tensor:
        if name not in self._columns:
            return self._data.column(name)
        return self._columns[name][torch.searchsorted(self._known, self.ids)]

    def fingerprint(self) -> str:
        named = [("known", self._known), *sorted(self._columns.items())]
        return digest(named, self._data.fingerprint())

    def to(self, device: torch.device | str) -> Self:
        return self._over(self._data.to(device))

    def _over(self, data: Data) -> Self:
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.ids, view._data = data.ids, data
        return view

    def _root(self) -> object:
        return self  # a part without these columns cannot be joined

    def _with_ids(self, ids: Tensor) -> Self:
        return self._over(self._data._with_ids(ids))
