"""Map-style torch data sets, read example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from expunge.data.arrays import Batch, Data, check_finite, digest, fixed_order
from expunge.errors import ConfigError, DataError
from expunge.seeding import seeded

Collate = Callable[[list[Any]], Batch]


class StreamData(Data):
    """Any torch data set with ``len`` and ``[i]``, for data too large or too varied for tensors.

    Items are ``(inputs, targets)`` pairs or mappings. Images become ``(C, H, W)``; uint8 ``inputs``
    become float32 in [0, 1]; arrays and tensors keep their layout.

    Args:
        dataset: the examples; its own random transforms draw from python's, numpy's and torch's
            global generators, which are seeded for each batch and restored.
        collate: a list of items to a batch without ``"ids"``; the default stacks them.
        workers: processes that read ahead; 0 reads in this one.
        plain: the same examples without random transforms, used wherever no generator is given.

    Raises:
        DataError: a data set without length or examples, or whose ``plain`` differs in length.
        ConfigError: a negative number of workers.
    """

    def __init__(
        self, dataset: Any, collate: Collate | None = None, workers: int = 0, plain: Any | None = None
    ) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError(
                f"{type(dataset).__name__} cannot be addressed by id. Give a data set with len() and [i]."
            )
        if len(dataset) == 0:
            raise DataError(f"{type(dataset).__name__} is empty. A data set needs at least one example.")
        if plain is not None and len(plain) != len(dataset):
            raise DataError(f"plain has {len(plain)} examples, but the data set has {len(dataset)}.")
        if workers < 0:
            raise ConfigError(f"workers is a number of processes, got {workers}.", "workers")
        self.ids = torch.arange(len(dataset))
        self._dataset, self._plain = dataset, dataset if plain is None else plain
        self._collate = collate or stack
        self._workers = workers
        self._targets: Tensor | None = None
        self._fingerprint: str | None = None

    @property
    def augmented(self) -> bool:
        """Always: whether a data set draws at random cannot be seen from outside."""
        return True

    def batches(
        self,
        order: Iterable[Tensor],
        *,
        device: torch.device | str,
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        orders = [self.ids[positions] for positions in order]
        read = self._read_ahead if self._workers else self._read
        for ids, batch in zip(orders, read(orders, generator), strict=True):
            batch = {**batch, "ids": ids}
            yield {name: values.to(device, non_blocking=True) for name, values in batch.items()}

    def column(self, name: str) -> Tensor:
        if name == "ids":
            return self.ids
        if name == "targets":
            if self._targets is None:
                self._targets = self._root_targets()
            if self._targets is not None:
                return self._targets[self.ids]
        parts = []
        for batch in self.batches(fixed_order(len(self), 256), device="cpu"):
            if name not in batch:
                have = ", ".join(key for key in batch if key != "ids")
                raise DataError(f"the data set has no column '{name}'. It has: {have}.")
            parts.append(batch[name])
        return _join(name, parts)

    def fingerprint(self) -> str:
        """SHA-256 of every example, read once in full without augmentation."""
        if self._fingerprint is None:
            digests = [
                digest(sorted(batch.items()))
                for batch in self.batches(fixed_order(len(self), 256), device="cpu")
            ]
            self._fingerprint = digest(
                [], "stream augmented " * (self._plain is not self._dataset) + " ".join(digests)
            )
        return self._fingerprint

    def _root(self) -> object:
        return self._dataset

    def _with_ids(self, ids: Tensor) -> Self:
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.ids = ids
        view._fingerprint = None
        return view

    def _read(self, orders: list[Tensor], generator: torch.Generator | None) -> Iterator[Batch]:
        dataset = self._plain if generator is None else self._dataset
        for ids in orders:
            with seeded(_draw(generator)):
                items = [dataset[i] for i in ids.tolist()]
            yield self._collate(items)

    def _read_ahead(self, orders: list[Tensor], generator: torch.Generator | None) -> Iterator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            Subset(self._plain if generator is None else self._dataset, range(len(self._dataset))),
            batch_sampler=[ids.tolist() for ids in orders],
            num_workers=self._workers,
            collate_fn=self._collate,
            generator=torch.Generator().manual_seed(_draw(generator)),
        )
        return iter(loader)

    def _root_targets(self) -> Tensor | None:
        """The labels the data set already holds, unless it changes them on the way out."""
        found = getattr(self._plain, "targets", None)
        if found is None or getattr(self._plain, "target_transform", None) is not None:
            return None
        targets = torch.as_tensor(found)
        if len(targets) != len(self._plain):
            raise DataError(f"dataset.targets has {len(targets)} rows for {len(self._plain)} examples.")
        return targets if targets.is_floating_point() else targets.long()


def stack(items: list[Any]) -> Batch:
    """Items, each an ``(inputs, targets)`` pair or a mapping, stacked column by column.

    Raises:
        DataError: other items, rows of different shapes, or a NaN or infinity.
    """
    first = items[0]
    if isinstance(first, Mapping):
        names = list(first)
        rows = [[item[name] for name in names] for item in items]
    elif isinstance(first, (tuple, list)) and len(first) == 2:
        names, rows = ["inputs", "targets"], [list(item) for item in items]
    else:
        raise DataError(
            f"an item of the data set is {type(first).__name__}; expected (inputs, targets) or a "
            "mapping. Give collate to StreamData."
        )
    return {name: _stack(name, [row[k] for row in rows]) for k, name in enumerate(names)}


def _stack(name: str, values: list[Any]) -> Tensor:
    tensors = [_tensor(name, value) for value in values]
    for tensor in tensors:
        if tensor.shape != tensors[0].shape:
            raise DataError(
                f"'{name}' differs in shape between examples: {tuple(tensors[0].shape)} and "
                f"{tuple(tensor.shape)}. Resize or pad them, or give collate to StreamData."
            )
    stacked = torch.stack(tensors)
    check_finite(name, stacked)
    if stacked.dtype == torch.uint8 and name == "inputs":
        return stacked.float().div_(255)
    return stacked if stacked.is_floating_point() else stacked.long()


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "getbands") and hasattr(value, "convert"):  # a Pillow image
        return image_tensor(value)
    try:
        array = np.array(value)
        return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)
    except (TypeError, ValueError):
        raise DataError(
            f"'{name}' of an example is {type(value).__name__}; expected numbers, an image or a tensor."
        ) from None


def image_tensor(image: Any) -> Tensor:
    """A Pillow image as uint8 ``(C, H, W)``: one channel if grey, three otherwise."""
    mode = "L" if image.mode in ("1", "L") else "RGB"
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).copy())


def _join(name: str, parts: list[Tensor]) -> Tensor:
    try:
        return torch.cat(parts)
    except RuntimeError:
        shapes = sorted({str(tuple(part.shape[1:])) for part in parts})
        raise DataError(f"column '{name}' differs in shape between batches: {', '.join(shapes)}.") from None


def _draw(generator: torch.Generator | None) -> int:
    return 0 if generator is None else int(torch.randint(2**62, (), generator=generator))
