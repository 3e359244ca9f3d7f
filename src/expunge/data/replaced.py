"""A data set in which some examples have other values: drawn labels instead of the true ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor

from expunge.data.arrays import Batch, Data, digest


class Replaced(Data):
    """The examples of ``data``, some of whose columns are replaced for the examples ``ids``.

    The ids stay, nothing is copied, and inputs are replaced after augmentation.

    Args:
        data: any data set.
        ids: whose values change, ``(K,)``; others than those of ``data`` are passed over.
        columns: their new values by column, ``(K, …)``.
    """

    def __init__(self, data: Data, ids: Tensor, columns: Mapping[str, Tensor]) -> None:
        order = ids.argsort()
        self.ids, self._data = data.ids, data
        self._changed = ids[order]
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
        order = list(order)
        plain = self._data.batches(order, device=device, generator=generator)
        for positions, batch in zip(order, plain, strict=True):
            ids = self.ids[positions]
            changed = {name: self._replace(name, batch[name], ids) for name in self._columns}
            yield {**batch, **changed}

    def column(self, name: str) -> Tensor:
        values = self._data.column(name)
        return self._replace(name, values, self.ids) if name in self._columns else values

    def fingerprint(self) -> str:
        named = [("changed", self._changed), *sorted(self._columns.items())]
        return digest(named, self._data.fingerprint())

    def to(self, device: torch.device | str) -> Self:
        return self._over(self._data.to(device))

    def _replace(self, name: str, values: Tensor, ids: Tensor) -> Tensor:
        """The values of one column for the examples ``ids``, ``(N, …)``, with the new ones put in."""
        places = torch.searchsorted(self._changed, ids).clamp(max=len(self._changed) - 1)
        hit = (self._changed[places] == ids).to(values.device)
        new = self._columns[name][places].to(values)
        return torch.where(hit.view(-1, *[1] * (values.ndim - 1)), new, values)

    def _over(self, data: Data) -> Self:
        return type(self)(data, self._changed, self._columns)

    def _root(self) -> object:
        return self._data._root()

    def _with_ids(self, ids: Tensor) -> Self:
        return self._over(self._data._with_ids(ids))
