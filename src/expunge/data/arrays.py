"""Data sets addressed by ids, and the kind that lives in tensors on one device.

A data set is asked for batches in an order that the caller chooses; it is never a loader with an
order of its own. An example keeps its id, its position in the root data set, in every subset.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from expunge.data.augment import Augment
from expunge.errors import ConfigError, DataError

Batch = dict[str, Tensor]
"""Named tensors whose first dimension is the examples; ``"ids"`` ``(N,)`` int64 is always among
them. Only a task looks at the others."""


class Data(ABC):
    """A data set addressed by ids.

    Attributes:
        ids: ``(N,)`` int64 on the CPU, positions in the root data set; stable under ``subset``.
        sets: published forget sets, by name: ids of the root data set.
    """

    ids: Tensor
    sets: Mapping[str, Tensor] = MappingProxyType({})

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, ids: Tensor | Sequence[int]) -> Self:
        """The examples with these root ids, in this order; nothing is copied.

        Raises:
            DataError: no ids, ids that are not integers, or the first id that is absent or repeated.
        """
        return self._with_ids(check_ids(ids, self.ids))

    @property
    def augmented(self) -> bool:
        """Whether the training view changes examples at random."""
        return False

    @abstractmethod
    def batches(
        self,
        order: Iterable[Tensor],
        *,
        device: torch.device | str,
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """One batch for each element of ``order``, all of it on ``device``.

        Args:
            order: each element holds positions in this data set, ``0..len - 1``.
            device: where the batch is needed.
            generator: a CPU generator for the training view, whose augmentation is drawn from it;
                ``None`` for the examples as they are.
        """

    def random_order(self, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        """An epoch of random batches, as positions; ``batch_count(len, batch_size)`` of them."""
        return random_order(len(self), batch_size, generator)

    def fixed_order(self, batch_size: int) -> list[Tensor]:
        """All positions in order, in batches."""
        return fixed_order(len(self), batch_size)

    def even_order(self, batch_size: int, answer: str = "") -> list[Tensor]:
        """All positions in batches with as little padding as can be; in order where nothing is padded.

        Args:
            answer: of other answers that the data brings by this name.
        """
        return self.fixed_order(batch_size)

    @abstractmethod
    def column(self, name: str) -> Tensor:
        """A whole column as stored, ``(N, …)`` on the CPU, in the order of ``ids``.

        Raises:
            DataError: if there is no such column.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the contents and ids (and of the augmentation, if any)."""

    def joined(self, other: Data) -> Self:
        """The examples of both, in the order of their ids; both must be subsets of one root data set.

        Raises:
            DataError: they are not, or share an example.
        """
        if self._root() is not other._root():
            raise DataError("the two are no parts of one data set. Make them with Split.from_ids.")
        ids = torch.sort(torch.cat([self.ids, other.ids])).values
        return self._with_ids(integers(ids, "the joined ids"))

    def holds(self, other: Data) -> bool:
        """Whether all examples of the other are among these; never for another root data set."""
        return self._root() is other._root() and bool(torch.isin(other.ids, self.ids).all())

    def to(self, device: torch.device | str) -> Self:
        """The same data set with its storage on ``device``, where it has a storage to move."""
        return self

    @abstractmethod
    def _root(self) -> object:
        """What all subsets of one root data set have in common."""

    @abstractmethod
    def _with_ids(self, ids: Tensor) -> Self:
        """A view of the examples with these ids, which are known to exist."""


class ArrayData(Data):
    """Columns of equal length held as tensors on one device; batches are gathered there.

    ``ArrayData({"inputs": images, "targets": labels})``. Columns are tensors or arrays:

    - uint8 ``inputs`` (images) stay uint8 and reach the model as float32 in [0, 1];
    - other integers and booleans become int64;
    - numpy floats become float32; floating tensors keep their type.

    No mean is subtracted: normalisation belongs to the model.

    Args:
        columns: name to ``(N, …)`` array or tensor.
        augment: changes the ``inputs`` of the training view, for example ``CropFlip()``.
        class_names: names of the classes, in the order of their labels.

    Raises:
        DataError: no column or example, unequal lengths, a NaN or infinity (with its first row), a
            column of objects, or an augmentation of inputs that are not images ``(N, C, H, W)``.
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        augment: Augment | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        tensors = {name: _column(name, values) for name, values in columns.items()}
        _check(tensors)
        if augment is not None and ("inputs" not in tensors or tensors["inputs"].ndim != 4):
            found = tuple(tensors["inputs"].shape) if "inputs" in tensors else "no inputs"
            raise DataError(f"augment needs image inputs of shape (N, C, H, W), got {found}.")
        self.augment = augment
        self.class_names = tuple(class_names) if class_names is not None else None
        self.ids = torch.arange(len(next(iter(tensors.values()))))
        self._storage = _Storage(tensors)
        self._fingerprint: str | None = None

    @property
    def augmented(self) -> bool:
        return self.augment is not None

    def batches(
        self,
        order: Iterable[Tensor],
        *,
        device: torch.device | str,
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        for positions in order:
            ids = self.ids[positions]
            batch = self._storage.gather(ids)
            inputs = batch.get("inputs")
            if inputs is not None:
                if self.augment is not None and generator is not None:
                    inputs = self.augment(inputs, generator)
                inputs = inputs.to(device, non_blocking=True)
                batch["inputs"] = inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs
            batch["ids"] = ids
            yield {name: values.to(device, non_blocking=True) for name, values in batch.items()}

    def column(self, name: str) -> Tensor:
        if name == "ids":
            return self.ids
        if name not in self._storage.columns:
            have = ", ".join(self._storage.columns)
            raise DataError(f"the data set has no column '{name}'. It has: {have}.")
        values = self._storage.columns[name]
        if len(self) == len(values) and torch.equal(self.ids, torch.arange(len(values))):
            return values.cpu()
        return values.index_select(0, self.ids.to(values.device)).cpu()

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            names = sorted(self._storage.columns)
            columns = [(name, self.column(name)) for name in names]
            self._fingerprint = digest([("ids", self.ids), *columns], repr(self.augment or ""))
        return self._fingerprint

    def _root(self) -> object:
        return self._storage.copies

    def to(self, device: torch.device | str) -> Self:
        """The same data set on ``device``; subsets of one root share one copy there."""
        moved = self._with_ids(self.ids)
        moved._storage = self._storage.on(torch.device(device))
        moved._fingerprint = self._fingerprint
        return moved

    def _with_ids(self, ids: Tensor) -> Self:
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.ids = ids
        view._fingerprint = None
        return view


class _Storage:
    """The tensors behind a root data set and all its subsets, with one copy for each device."""

    def __init__(
        self, columns: dict[str, Tensor], copies: dict[torch.device, _Storage] | None = None
    ) -> None:
        self.columns = columns
        self.device = next(iter(columns.values())).device
        self.copies: dict[torch.device, _Storage] = {} if copies is None else copies
        self.copies[self.device] = self

    def gather(self, rows: Tensor) -> Batch:
        rows = rows.to(self.device, non_blocking=True)
        return {name: values.index_select(0, rows) for name, values in self.columns.items()}

    def on(self, device: torch.device) -> _Storage:
        if device.index is None and device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self.copies:
            moved = {name: values.to(device) for name, values in self.columns.items()}
            return type(self)(moved, self.copies)
        return self.copies[device]


def random_order(n: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """A random permutation of ``0..n - 1`` in batches; the last one may be smaller.

    A last batch of a single example joins the one before it: BatchNorm cannot be trained on one.

    Raises:
        ConfigError: for a batch size below 1.
    """
    _check_batch_size(batch_size)
    batches = list(torch.randperm(n, generator=generator).split(batch_size))
    if len(batches) > batch_count(n, batch_size):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def batch_count(n: int, batch_size: int) -> int:
    """The number of batches of ``random_order``."""
    alone = n % batch_size == 1 and 1 < batch_size < n
    return -(-n // batch_size) - alone


def fixed_order(n: int, batch_size: int) -> list[Tensor]:
    """``0..n - 1`` in batches, in order; the last one may be smaller.

    Raises:
        ConfigError: for a batch size below 1.
    """
    _check_batch_size(batch_size)
    return list(torch.arange(n).split(batch_size))


def integers(ids: Tensor | Sequence[int] | np.ndarray[Any, Any], what: str = "ids") -> Tensor:
    """Ids as an int64 tensor ``(N,)`` on the CPU, each at most once.

    Raises:
        DataError: none at all, not integers, not one-dimensional, or repeated (the first such id).
    """
    try:
        values = ids.detach().cpu() if isinstance(ids, Tensor) else torch.as_tensor(np.asarray(ids))
    except (TypeError, ValueError):
        raise DataError(f"{what} must be a list of integers, got {_short(ids)}.") from None
    if values.ndim != 1:
        raise DataError(f"{what} must be one-dimensional, got shape {tuple(values.shape)}.")
    if len(values) == 0:
        raise DataError(f"{what} are empty. Give at least one id.")
    if values.dtype == torch.bool:
        raise DataError(f"{what} must be integers, got booleans. Turn a mask into ids: mask.nonzero()[:, 0].")
    if values.is_floating_point() or values.is_complex():
        raise DataError(f"{what} must be integers, got {values.dtype} ({_short(values[0].item())}, …).")
    values = values.long()
    unique, counts = values.unique(return_counts=True)
    if len(unique) < len(values):
        repeated = values[torch.isin(values, unique[counts > 1])][0]
        raise DataError(f"{what} hold {int(repeated)} more than once. Give each id once.")
    return values


def check_ids(ids: Tensor | Sequence[int] | np.ndarray[Any, Any], known: Tensor, what: str = "ids") -> Tensor:
    """``integers(ids)``, all of them in ``known``.

    Raises:
        DataError: as ``integers``, or the first id that is absent, with the valid range.
    """
    values = integers(ids, what)
    absent = values[~torch.isin(values, known)]
    if len(absent) == 0:
        return values
    low, high = int(known.min()), int(known.max())
    where = f"the data set's ids are {low}..{high}"
    if high - low + 1 > len(known):
        where = f"the data set holds {len(known)} of the ids {low}..{high}"
    raise DataError(f"{what} hold {int(absent[0])}, which is not in the data: {where}.")


def digest(tensors: Iterable[tuple[str, Tensor]], extra: str = "") -> str:
    """SHA-256, in hexadecimal, of named CPU tensors: names, types, shapes and bytes, in order."""
    total = hashlib.sha256(extra.encode())
    for name, values in tensors:
        total.update(f"\x1f{name} {values.dtype} {tuple(values.shape)}\x1f".encode())
        total.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _column(name: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        tensor = values.detach()
    else:
        try:
            tensor = torch.from_numpy(np.array(values))  # a copy: the caller's array may change later
        except (TypeError, ValueError):
            raise DataError(
                f"column '{name}' is no array of numbers. Give a tensor or a numeric array (N, …)."
            ) from None
        if tensor.dtype == torch.float64:
            tensor = tensor.float()
    if tensor.is_floating_point() or (name == "inputs" and tensor.dtype == torch.uint8):
        return tensor
    if tensor.is_complex():
        raise DataError(f"column '{name}' is complex. Give its real and imaginary parts as floats.")
    return tensor.long()


def _check(columns: dict[str, Tensor]) -> None:
    if not columns or "ids" in columns:
        raise DataError(
            "'ids' is not a column: ids are the positions of the examples." if columns else "no columns."
        )
    (first, values), *others = columns.items()
    for name, tensor in columns.items():
        if tensor.ndim == 0:
            raise DataError(f"column '{name}' is a single number; it needs one row for each example.")
    for name, tensor in others:
        if len(tensor) != len(values):
            raise DataError(f"column '{name}' has {len(tensor)} rows, but '{first}' has {len(values)}.")
        if tensor.device != values.device:
            raise DataError(f"column '{name}' is on {tensor.device}, but '{first}' is on {values.device}.")
    if len(values) == 0:
        raise DataError(f"column '{first}' has no rows. A data set needs at least one example.")
    for name, tensor in columns.items():
        check_finite(name, tensor)


def check_finite(name: str, values: Tensor) -> None:
    """Refuses NaN and infinities in a column ``(N, …)``.

    Raises:
        DataError: naming the column and the first bad row.
    """
    if not values.is_floating_point() or torch.isfinite(values.sum()):
        return  # a finite sum has finite terms
    bad = ~torch.isfinite(values.flatten(1) if values.ndim > 1 else values[:, None]).all(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        kind = "NaN" if values[row].isnan().any() else "an infinity"
        raise DataError(f"column '{name}' holds {kind} in row {row}. Remove or replace it.")


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"a batch holds at least 1 example, got {batch_size}.", "batch_size")


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
