"""What is to be forgotten and what is to be kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from expunge.data.arrays import ArrayData, Data, check_ids, integers
from expunge.data.stream import StreamData
from expunge.errors import DataError


@dataclass(frozen=True)
class Split:
    """The parts of an unlearning problem.

    Attributes:
        forget: training examples to forget.
        retain: the other training examples.
        test: examples that were not trained on, to measure what the model is for.
        holdout: further examples that were not trained on, for attacks that need non-members.
        probes: further questions to ask the models, by name.
    """

    forget: Data
    retain: Data
    test: Data | None = None
    holdout: Data | None = None
    probes: Mapping[str, Data] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = set(self.probes) & {"forget", "retain", "test", "holdout"}
        if taken:
            raise DataError(f"a probe cannot be called '{min(taken)}': that is a part of its own.")

    @classmethod
    def from_ids(
        cls,
        train: object,
        forget: Tensor | Sequence[int] | np.ndarray[Any, Any],
        *,
        test: object | None = None,
        holdout: object | None = None,
        probes: Mapping[str, Data] | None = None,
    ) -> Self:
        """Splits ``train`` into the examples with the ids ``forget`` and all the others.

        Data sets are ``Data``, an ``(inputs, targets)`` pair of arrays, a mapping of columns or a
        torch data set. The retained examples keep the order of ``train``.

        Raises:
            DataError: no ids, ids that are not integers, absent, or repeated, nothing left to
                retain, or a data set of another kind.
        """
        data = as_data(train, "train")
        ids = check_ids(forget, data.ids, "forget ids")
        kept = data.ids[~torch.isin(data.ids, ids)]
        if len(kept) == 0:
            raise DataError(
                f"the forget set is all {len(data)} training examples, so nothing is retained. "
                "Forget fewer of them."
            )
        return cls(
            forget=data.subset(ids),
            retain=data.subset(kept),
            test=None if test is None else as_data(test, "test"),
            holdout=None if holdout is None else as_data(holdout, "holdout"),
            probes=probes or {},
        )

    def train(self) -> Data:
        """All that the original was trained on: forget and retain together, in the order of ids.

        Raises:
            DataError: they are not parts of one data set.
        """
        return self.retain.joined(self.forget)

    def parts(self) -> dict[str, Data]:
        """The parts there are, by name: forget, retain, and test, holdout and probes if given."""
        named = {"forget": self.forget, "retain": self.retain, "test": self.test, "holdout": self.holdout}
        return {name: data for name, data in named.items() if data is not None} | dict(self.probes)

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the contents and ids of every part."""
        lines = [f"{name} {data.fingerprint()}" for name, data in self.parts().items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def as_data(value: object, what: str = "data") -> Data:
    """``value`` as a ``Data``: itself, a pair of arrays, a mapping of columns or a torch data set.

    Raises:
        DataError: if it is none of these.
    """
    if isinstance(value, Data):
        return value
    if isinstance(value, TensorDataset) and len(value.tensors) == 2:
        value = value.tensors
    if isinstance(value, Mapping):
        return ArrayData(value)
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise DataError(f"{what} has {len(value)} arrays; expected the pair (inputs, targets).")
        return ArrayData({"inputs": value[0], "targets": value[1]})
    addressable = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    if addressable and not isinstance(value, (str, bytes, Tensor, np.ndarray)):
        return StreamData(value)
    raise DataError(
        f"{what} is {type(value).__name__}; expected expunge Data, the pair (inputs, targets), a mapping "
        "of columns or a torch data set."
    )


def read_ids(path: Path | str) -> Tensor:
    """The ids in a file, ``(N,)`` int64.

    ``.txt`` has one id a line, with ``#`` comments; ``.npy`` a one-dimensional integer array;
    ``.json`` a list of integers or an index file of a search.

    Raises:
        DataError: no such file, another kind of file, or contents that are not distinct integers.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], Any]]
    readers = {".txt": _read_text, ".npy": _read_array, ".json": _read_json}
    if path.suffix not in readers:
        raise DataError(f"cannot read ids from '{path}'. Give a .txt, .npy or .json file.")
    try:
        values = readers[path.suffix](path)
    except OSError as error:
        raise DataError(f"cannot read ids from '{path}': {error.strerror or error}.") from None
    return integers(values, f"ids in '{path}'")


def _read_text(path: Path) -> list[int]:
    ids = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"'{path}' is not a text file. Write one id a line.") from None
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            ids.append(int(text))
        except ValueError:
            raise DataError(f"'{path}' line {number} is not an integer: {text[:40]!r}.") from None
    return ids


def _read_array(path: Path) -> np.ndarray[Any, Any]:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise DataError(f"'{path}' is not an array of numbers. Write it with numpy.save.") from None
    if not isinstance(values, np.ndarray):
        raise DataError(f"'{path}' holds several arrays. Write the ids alone with numpy.save.")
    return values


def _read_json(path: Path) -> list[int]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise DataError(f"'{path}' is not valid JSON. Write a list of ids, for example [3, 17].") from None
    if isinstance(values, dict) and "ids" in values:  # an index file, see searches.SearchResult
        values = values["ids"]
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise DataError(f"'{path}' is not a list of integers. Write for example [3, 17].")
    return values
