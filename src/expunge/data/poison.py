"""Training data with a known fault: swapped classes, a backdoor, wrong labels. Its clean labels are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.data.arrays import ArrayData, Data
from expunge.data.source import DataSource, Sourced, sources
from expunge.errors import ConfigError, DataError
from expunge.registry import Registry
from expunge.seeding import generator

CLEAN, MANIPULATED, AFFECTED = "clean_targets", "manipulated", "affected"
"""Columns of a poisoned data set beside its own."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """The trigger of a backdoor: a square of ``size`` × ``size`` pixels in a corner of the image."""

    size: int = 3
    corner: Literal["bottom_right", "bottom_left", "top_right", "top_left"] = "bottom_right"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"is in pixels and at least 1, got {self.size}.", "size")

    def on(self, images: Tensor, value: float) -> Tensor:
        """Copies of the images with the patch set to ``value``. Shapes: ``(N, C, H, W)`` to the same.

        Raises:
            DataError: inputs that are no images, or images with no pixel outside of the patch.
        """
        if images.ndim != 4:
            raise DataError(f"a patch needs images of shape (N, C, H, W), got {tuple(images.shape)}.")
        if self.size >= min(images.shape[2:]):
            height, width = images.shape[2:]
            raise DataError(f"a patch of {self.size} pixels does not fit images of {height} × {width}.")
        vertical, horizontal = self.corner.split("_")
        rows = slice(0, self.size) if vertical == "top" else slice(-self.size, None)
        columns = slice(0, self.size) if horizontal == "left" else slice(-self.size, None)
        patched = images.clone()
        patched[:, :, rows, columns] = value
        return patched


@dataclass(frozen=True)
class Examples:
    """Inputs ``(N, …)``, integer labels ``(N,)`` and the number of classes."""

    inputs: Tensor
    targets: Tensor
    classes: int


class Manipulation(ABC):
    """A fault put into training data. Subclasses are frozen dataclasses."""

    @abstractmethod
    def apply(self, clean: Examples, draw: torch.Generator) -> tuple[Examples, Tensor]:
        """The examples with the fault, and the row numbers of those that have it, ascending.

        Raises:
            DataError: the data cannot have this fault: too few examples, no such class, no images.
        """

    def affected(self, targets: Tensor) -> Tensor:
        """Which test examples a model with the fault may get wrong as they are, ``(N,)`` booleans."""
        return torch.zeros(len(targets), dtype=torch.bool)


manipulations: Registry[Manipulation] = Registry(
    "manipulation",
    Manipulation,  # type: ignore[type-abstract]
    ("expunge.data.poison", "expunge.data.unlearnable"),
)


@manipulations.register("interclass_confusion")
@dataclass(frozen=True, kw_only=True)
class InterclassConfusion(Manipulation):
    """Labels of two classes exchanged: half of ``count`` examples of each become the other class.

    Args:
        classes: the two labels ``a`` and ``b``.
        count: manipulated examples, an even number.

    Differs: the examples are drawn at random; the benchmark takes the first of each class.
    References: Goel et al., Towards Adversarial Evaluations for Inexact Machine Unlearning, 2022,
        arXiv:2201.06640; Goel et al., Corrective Machine Unlearning, TMLR 2024, arXiv:2402.14015.
    """

    classes: tuple[int, int] = (3, 5)
    count: int = 100

    def __post_init__(self) -> None:
        if self.classes[0] == self.classes[1]:
            raise ConfigError(f"name two different classes, got {list(self.classes)}.", "classes")
        if self.count < 2 or self.count % 2:
            raise ConfigError(f"is even, half of it from each class, got {self.count}.", "count")

    def apply(self, clean: Examples, draw: torch.Generator) -> tuple[Examples, Tensor]:
        first, second = (
            _drawn((clean.targets == label).nonzero()[:, 0], self.count // 2, f"of class {label}", draw)
            for label in self.classes
        )
        targets = clean.targets.clone()
        targets[first], targets[second] = self.classes[1], self.classes[0]
        rows = torch.cat([first, second]).sort().values
        return Examples(clean.inputs, targets, clean.classes), rows

    def affected(self, targets: Tensor) -> Tensor:
        """The test examples of the two classes."""
        return torch.isin(targets, torch.tensor(self.classes))


@manipulations.register("backdoor")
@dataclass(frozen=True, kw_only=True)
class Backdoor(Manipulation):
    """A patch on ``count`` images, all of which get the label ``label``.

    A model trained on them answers ``label`` wherever it sees the patch. The patch has the largest value
    that the training inputs hold.

    Args:
        label: the class that the trigger leads to.
        count: manipulated examples.
        patch: the trigger.

    Differs: only images of other classes are taken, so that every label is wrong.
    References: Gu et al., BadNets, 2017, arXiv:1708.06733; Goel et al., Corrective Machine Unlearning,
        TMLR 2024, arXiv:2402.14015 (3 × 3 pixels at the bottom right, label 0).
    """

    label: int = 0
    count: int = 100
    patch: Patch = Patch()

    def __post_init__(self) -> None:
        _check_count(self.count)

    def apply(self, clean: Examples, draw: torch.Generator) -> tuple[Examples, Tensor]:
        if not 0 <= self.label < clean.classes:
            raise DataError(f"there is no class {self.label}: the labels are 0..{clean.classes - 1}.")
        others = (clean.targets != self.label).nonzero()[:, 0]
        rows = _drawn(others, self.count, f"of classes other than {self.label}", draw)
        inputs, targets = clean.inputs.clone(), clean.targets.clone()
        inputs[rows] = self.patch.on(clean.inputs[rows], float(clean.inputs.max()))
        targets[rows] = self.label
        return Examples(inputs, targets, clean.classes), rows


@manipulations.register("random_label_swap")
@dataclass(frozen=True, kw_only=True)
class RandomLabelSwap(Manipulation):
    """Labels of ``count`` examples replaced by another class, each of the others as likely.

    Args:
        count: manipulated examples.

    Differs: every chosen label changes; in the benchmark's code, which permutes the labels among the
        chosen examples, some keep theirs and are none the less counted as manipulated.
    References: Goel et al., Corrective Machine Unlearning, TMLR 2024, arXiv:2402.14015.
    """

    count: int = 100

    def __post_init__(self) -> None:
        _check_count(self.count)

    def apply(self, clean: Examples, draw: torch.Generator) -> tuple[Examples, Tensor]:
        rows = _drawn(torch.arange(len(clean.targets)), self.count, "at all", draw)
        steps = torch.randint(1, clean.classes, (self.count,), generator=draw)
        targets = clean.targets.clone()
        targets[rows] = (targets[rows] + steps) % clean.classes
        return Examples(clean.inputs, targets, clean.classes), rows

    def affected(self, targets: Tensor) -> Tensor:
        """All of them."""
        return torch.ones(len(targets), dtype=torch.bool)


@sources.register("poisoned")
@dataclass(frozen=True, kw_only=True)
class Poisoned(DataSource):
    """Another data set with a manipulation in its training part, and the knowledge of where it is.

    The training part gains the columns ``clean_targets`` and ``manipulated`` (0 or 1), the test part
    ``clean_targets`` (its own targets) and ``affected``: the examples that the fault concerns as they are.
    Training sees none of these columns; the search ``manipulated`` and the data-integrity metrics do.

    Args:
        source: the clean data, a classification data set held in memory.
        manipulation: the fault.
        seed: of which examples are manipulated.
    """

    source: DataSource
    manipulation: Manipulation
    seed: int = 0

    def load(self) -> Sourced:
        found = self.source.load()
        train, test = _columns(found.train), _columns(found.test)
        classes = found.classes or int(train["targets"].max()) + 1
        clean = Examples(train["inputs"], train["targets"], classes)
        draw = generator(self.seed, "poisoned", manipulations.name_of(self.manipulation))
        poisoned, rows = self.manipulation.apply(clean, draw)
        manipulated = torch.zeros(len(clean.targets), dtype=torch.long)
        manipulated[rows] = 1
        train |= {"inputs": poisoned.inputs, "targets": poisoned.targets}
        train |= {CLEAN: clean.targets, MANIPULATED: manipulated}
        test |= {CLEAN: test["targets"], AFFECTED: self.manipulation.affected(test["targets"])}
        return Sourced(
            ArrayData(train, getattr(found.train, "augment", None), found.class_names),
            ArrayData(test, None, found.class_names),
            found.classes,
            found.class_names,
            found.image_shape,
        )


def unmanipulated(data: Data) -> Data:
    """The examples that the column ``manipulated`` does not mark; all of them where there is no such column.

    What a retrained model is trained on. Retraining on whatever is left after a part of the manipulated
    examples was found would learn the fault again, and is no gold standard.
    """
    try:
        flags = data.column("manipulated")
    except DataError:
        return data
    return data.subset(data.ids[flags == 0]) if bool((flags != 0).any()) else data


def _columns(data: Data) -> dict[str, Tensor]:
    """All columns of a data set in memory."""
    if not isinstance(data, ArrayData):
        raise DataError(f"only data held in memory can be poisoned, got {type(data).__name__}.")
    (first,) = data.batches([torch.tensor([0])], device="cpu")
    columns = {name: data.column(name) for name in first if name != "ids"}
    if "inputs" not in columns or "targets" not in columns:
        raise DataError(f"poisoning needs the columns inputs and targets; the data has {', '.join(columns)}.")
    targets = columns["targets"]
    if targets.is_floating_point() or targets.ndim != 1:
        raise DataError("poisoning changes integer labels of shape (N,); this data has other targets.")
    if CLEAN in columns:
        raise DataError("the data set is poisoned already. Name the clean one as source.")
    return columns


def _check_count(count: int) -> None:
    if count < 1:
        raise ConfigError(f"must be at least 1, got {count}.", "count")


def _drawn(rows: Tensor, count: int, whose: str, draw: torch.Generator) -> Tensor:
    """``count`` of the rows, drawn without replacement."""
    if count > len(rows):
        raise DataError(f"{count} examples {whose} are to be manipulated; there are {len(rows)}.")
    return rows[torch.randperm(len(rows), generator=draw)[:count]]
