"""Where data comes from, by name: a source is a frozen dataclass that loads train and test data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expunge.data.arrays import Data
from expunge.errors import ConfigError
from expunge.registry import Registry


@dataclass(frozen=True)
class Sourced:
    """Loaded data and what is known about it.

    Attributes:
        train: the training examples, a root data set with ids ``0..len - 1``.
        test: examples that are not trained on.
        classes: number of classes or conditions; ``None`` where there are none.
        class_names: their names, in the order of the labels.
        image_shape: ``(C, H, W)`` of one image; ``None`` for other inputs.
        base: what a first stage trains on, from which the original and the retrained models both start;
            ``None`` where there is no such stage.
        probes: further data sets to ask about, by name.
        sets: published forget sets, by name: ids in ``train``, which then knows them too.
    """

    train: Data
    test: Data
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    image_shape: tuple[int, ...] | None = None
    base: Data | None = None
    probes: Mapping[str, Data] = field(default_factory=dict)
    sets: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sets:
            self.train.sets = self.sets


class DataSource(ABC):
    """A place data comes from. Subclasses are frozen dataclasses with keyword fields."""

    @abstractmethod
    def load(self) -> Sourced:
        """Reads or generates the data; the same fields always give the same data.

        Raises:
            DataError: it cannot be found, or is damaged.
        """


sources: Registry[DataSource] = Registry(
    "data set",
    DataSource,  # type: ignore[type-abstract]
    (
        "expunge.data.builtin",
        "expunge.data.images",
        "expunge.data.files",
        "expunge.data.poison",
        "expunge.data.language",
        "expunge.data.benchmarks",
        "expunge.data.canvas",
        "expunge.data.captioned_folder",
        "expunge.data.faces",
    ),
)


def stratified(groups: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row numbers of two parts, each in order; the second has ``fraction`` of every group.

    Args:
        groups: integer class of each row, ``(N,)``.
        fraction: in (0, 1); each group's share is rounded.

    Raises:
        ConfigError: a fraction outside (0, 1), or one that leaves a part empty.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"must be above 0 and below 1, got {fraction}.", "test_fraction")
    chosen = torch.zeros(len(groups), dtype=torch.bool)
    for rows in _shuffled_groups(groups, generator):
        chosen[rows[: round(fraction * len(rows))]] = True
    if chosen.all() or not chosen.any():
        raise ConfigError(f"{fraction} of {len(groups)} examples leaves a part empty.", "test_fraction")
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def balanced(groups: Tensor, size: int | None, generator: torch.Generator, name: str) -> Tensor:
    """``size`` row numbers, in order, as many from each group as from any other, up to one.

    Args:
        groups: integer class of each row, ``(N,)``.
        size: ``None`` for every row.
        name: the field that ``size`` comes from, for the message.

    Raises:
        ConfigError: a size below 1, or more than a group can give.
    """
    if size is None:
        return torch.arange(len(groups))
    shuffled = _shuffled_groups(groups, generator)
    each, more = divmod(size, len(shuffled))
    wanted = [each + (k < more) for k in range(len(shuffled))]
    if size < 1 or any(w > len(rows) for w, rows in zip(wanted, shuffled, strict=True)):
        least = min(map(len, shuffled))
        raise ConfigError(
            f"must be 1..{least * len(shuffled)} for the same number of each class, got {size}.", name
        )
    return torch.cat([rows[:w] for w, rows in zip(wanted, shuffled, strict=True)]).sort().values


def _shuffled_groups(groups: Tensor, generator: torch.Generator) -> list[Tensor]:
    return [
        rows[torch.randperm(len(rows), generator=generator)]
        for rows in ((groups == group).nonzero()[:, 0] for group in groups.unique())
    ]
