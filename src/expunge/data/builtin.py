"""Data that needs no file: the digits of scikit-learn and seeded generators for each kind of task."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from expunge.data.arrays import ArrayData
from expunge.data.source import DataSource, Sourced, sources, stratified
from expunge.errors import ConfigError
from expunge.seeding import generator


@sources.register("digits")
@dataclass(frozen=True, kw_only=True)
class Digits(DataSource):
    """Handwritten digits of scikit-learn: 1,797 grey 8×8 images, 10 classes.

    The 17 grey levels become exact multiples of 1/16 in [0, 1].

    Args:
        test_fraction: share of each class that is kept for the test set.
        seed: of the split into training and test set.
    """

    test_fraction: float = 0.2
    seed: int = 0

    def load(self) -> Sourced:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels).float().div(16).view(-1, 1, 8, 8)
        targets = torch.from_numpy(labels).long()
        names = tuple(str(digit) for digit in range(10))
        train, test = (
            ArrayData({"inputs": images[rows], "targets": targets[rows]}, class_names=names)
            for rows in stratified(targets, self.test_fraction, generator(self.seed, "digits"))
        )
        return Sourced(train, test, classes=10, class_names=names, image_shape=(1, 8, 8))


@dataclass(frozen=True, kw_only=True)
class Generated(DataSource):
    """Data drawn from a seeded generator of its own.

    Args:
        size, test_size: number of training and test examples.
        seed: of everything that is drawn.

    Raises:
        ConfigError: a size below 1, or a negative or non-finite scale.
    """

    size: int = 1000
    test_size: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "seed" and isinstance(value, int) and value < 1:
                raise ConfigError(f"must be at least 1, got {value}.", item.name)
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise ConfigError(f"must be at least 0, got {value}.", item.name)

    def _sourced(self, columns: dict[str, Tensor], classes: int | None = None) -> Sourced:
        """The first ``size`` rows to train on, the others to test on."""
        names = None if classes is None else tuple(str(label) for label in range(classes))
        train = {name: values[: self.size] for name, values in columns.items()}
        test = {name: values[self.size :] for name, values in columns.items()}
        return Sourced(
            ArrayData(train, class_names=names), ArrayData(test, class_names=names), classes, names
        )


@sources.register("blobs")
@dataclass(frozen=True, kw_only=True)
class Blobs(Generated):
    """Gaussian classes for a classifier: ``x ~ N(μ_y, spread² I)``, ``μ_y ~ N(0, separation² I)``.

    The labels go round: example ``i`` has label ``i mod classes``.
    """

    classes: int = 4
    features: int = 2
    separation: float = 3.0
    spread: float = 1.0

    def load(self) -> Sourced:
        draw = generator(self.seed, "blobs")
        centres = self.separation * torch.randn(self.classes, self.features, generator=draw)
        targets = torch.arange(self.size + self.test_size) % self.classes
        noise = torch.randn(len(targets), self.features, generator=draw)
        return self._sourced(
            {"inputs": centres[targets] + self.spread * noise, "targets": targets}, self.classes
        )


@sources.register("linear")
@dataclass(frozen=True, kw_only=True)
class Linear(Generated):
    """Linear regression: ``y = w·x + b + noise ε``; ``x``, ``w``, ``b`` and ``ε`` standard normal.

    Targets have shape ``(N, 1)``.
    """

    features: int = 8
    noise: float = 0.1

    def load(self) -> Sourced:
        draw = generator(self.seed, "linear")
        total = self.size + self.test_size
        weights = torch.randn(self.features + 1, 1, generator=draw)
        inputs = torch.randn(total, self.features, generator=draw)
        noise = self.noise * torch.randn(total, 1, generator=draw)
        targets = inputs @ weights[:-1] + weights[-1] + noise
        return self._sourced({"inputs": inputs, "targets": targets})


@sources.register("tokens")
@dataclass(frozen=True, kw_only=True)
class Tokens(Generated):
    """Token sequences for a causal language model: a random prompt and its answer.

    Each answer token is a fixed permutation of the one before it, or, with probability ``noise``,
    a uniform draw. The permutation can be learned from other examples; the draws can only be
    memorised. ``labels`` are −100 at the prompt.

    Args:
        prompt, answer: tokens of each.

    Raises:
        ConfigError: as all generators, a noise above 1, or a vocabulary of one token.
    """

    vocabulary: int = 64
    prompt: int = 8
    answer: int = 8
    noise: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise > 1:
            raise ConfigError(f"is a probability, got {self.noise}.", "noise")
        if self.vocabulary < 2:
            raise ConfigError(f"must be at least 2, got {self.vocabulary}.", "vocabulary")

    def load(self) -> Sourced:
        draw = generator(self.seed, "tokens")
        shape = (self.size + self.test_size, self.prompt + self.answer)
        successor = torch.randperm(self.vocabulary, generator=draw)
        drawn = torch.randint(self.vocabulary, shape, generator=draw)
        replaced = torch.rand(shape, generator=draw) < self.noise
        tokens = drawn.clone()
        for place in range(self.prompt, shape[1]):
            following = successor[tokens[:, place - 1]]
            tokens[:, place] = torch.where(replaced[:, place], drawn[:, place], following)
        labels = tokens.clone()
        labels[:, : self.prompt] = -100
        return self._sourced({"input_ids": tokens, "labels": labels})


@sources.register("points")
@dataclass(frozen=True, kw_only=True)
class Points(Generated):
    """Points in the plane for a conditional denoiser: one Gaussian for each condition.

    Condition ``c`` has its centre on the unit circle at the angle ``2π c / conditions``; ``targets``
    are the conditions, which go round as the labels of ``blobs`` do.

    Args:
        spread: standard deviation of each Gaussian.
    """

    conditions: int = 4
    spread: float = 0.1

    def load(self) -> Sourced:
        draw = generator(self.seed, "points")
        targets = torch.arange(self.size + self.test_size) % self.conditions
        angles = 2 * math.pi * targets / self.conditions
        centres = torch.stack([angles.cos(), angles.sin()], 1)
        noise = torch.randn(len(targets), 2, generator=draw)
        return self._sourced({"inputs": centres + self.spread * noise, "targets": targets}, self.conditions)
