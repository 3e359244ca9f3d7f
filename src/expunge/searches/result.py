"""What a search found: kept, compared, drawn and published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from expunge.data.arrays import Data, integers
from expunge.errors import DataError, RunError

KIND = "expunge forget set"
"""What an index file says that it is."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A forget set, how it was chosen and of which data.

    Args:
        ids: root ids of the examples, ascending, ``(m,)``.
        description: how it was chosen, in words.
        unit: what it is made of: examples, classes, subjects or prompts.
        fingerprint: SHA-256 of the training data that it was chosen from; empty where it is not known.
        search: the search as a mapping, and under ``seed`` its seed.
        details: what the search found out on its way: plain JSON.
    """

    ids: Tensor
    description: str
    unit: str = "example"
    fingerprint: str = ""
    search: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def overlap(self, other: SearchResult) -> float:
        """The fraction of this set that the other one holds too."""
        return float(torch.isin(self.ids, other.ids).double().mean())

    def jaccard(self, other: SearchResult) -> float:
        """``|A ∩ B| / |A ∪ B|``."""
        shared = int(torch.isin(self.ids, other.ids).sum())
        return shared / (len(self) + len(other) - shared)

    def composition(self, train: Data, column: str = "targets") -> dict[int, tuple[int, int]]:
        """For each value of a column, how many of its examples are in the set and how many there are.

        Classes are the column ``targets``, subjects ``subjects``.

        Raises:
            DataError: no such column, a column that is not of integers, or ids outside of the data.
        """
        self.check(train)
        values = train.column(column)
        if values.ndim != 1 or values.is_floating_point():
            raise DataError(f"column '{column}' has no groups to count: {values.dtype}, {values.ndim} dims.")
        inside = torch.isin(train.ids, self.ids)
        return {
            int(value): (int((values[inside] == value).sum()), int((values == value).sum()))
            for value in torch.unique(values)
        }

    def check(self, train: Data) -> None:
        """Refuses data that the set was not chosen from.

        Raises:
            DataError: another fingerprint, or ids that are not in the data.
        """
        if self.fingerprint and self.fingerprint != train.fingerprint():
            raise DataError(
                "the forget set was chosen from other training data: its fingerprint is "
                f"{self.fingerprint[:12]}…, that of this data {train.fingerprint()[:12]}…. "
                "Load the data that it names."
            )
        absent = self.ids[~torch.isin(self.ids, train.ids)]
        if len(absent):
            raise DataError(
                f"forget id {int(absent[0])} is not in the training data ({len(train)} examples)."
            )

    def draw(self, train: Data, path: str | Path, class_names: Sequence[str] | None = None) -> None:
        """Writes a picture of up to 100 of its examples.

        Raises:
            DataError: the examples are no images.
            RunError: the file cannot be written.
        """
        from expunge.data.pictures import sheet

        self.check(train)
        sheet(train.subset(self.ids), path, self.description, class_names)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "description": self.description,
            "unit": self.unit,
            "fingerprint": self.fingerprint,
            "search": dict(self.search),
            "details": dict(self.details),
            "ids": self.ids.tolist(),
        }

    def save(self, path: str | Path) -> None:
        """Writes an index file: JSON with the ids, the search and the fingerprint of the data.

        Raises:
            RunError: it cannot be written.
        """
        path = Path(path)
        try:
            path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write '{path}': {error.strerror}.") from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads an index file.

        Raises:
            DataError: no such file, or not an index file.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"cannot read '{path}': {error.strerror}.") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise DataError(f"'{path}' is not valid JSON.") from None
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise DataError(f"'{path}' is not an index file of a forget set. SearchResult.save writes one.")
        return cls.from_json(value)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        names = ("description", "unit", "fingerprint", "search", "details")
        kept = {name: value[name] for name in names if name in value}
        return cls(ids=integers(value.get("ids", ()), "the ids of the forget set").sort().values, **kept)
