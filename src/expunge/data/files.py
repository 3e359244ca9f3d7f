"""Your own data from files: folders of images, and numpy archives."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.arrays import ArrayData
from expunge.data.augment import CropFlip
from expunge.data.source import DataSource, Sourced, sources, stratified
from expunge.data.stream import image_tensor
from expunge.errors import ConfigError, DataError, MissingExtra
from expunge.seeding import generator

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@sources.register("image_folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """Images in one sub-folder for each class; the classes are in alphabetical order.

    Where ``path`` holds the two folders ``train`` and ``test``, those are the parts; otherwise a
    share of each class is kept for the test set. The images are held in memory as colour images of
    ``size`` × ``size`` pixels.

    Args:
        path: the folder.
        size: side in pixels that every image is resized to.
        test_fraction, seed: of the split, where there is none in the folder.
        augment: shift by up to an eighth of the side and mirror in training.
    """

    path: Path
    size: int = 32
    test_fraction: float = 0.2
    seed: int = 0
    augment: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"is in pixels and at least 1, got {self.size}.", "size")

    def load(self) -> Sourced:
        folders = _folders(self.path)
        if {folder.name for folder in folders} == {"train", "test"}:
            names = tuple(folder.name for folder in _folders(self.path / "train"))
            train, test = (self._read(self.path / part, names) for part in ("train", "test"))
        else:
            names = tuple(folder.name for folder in folders)
            images, labels = self._read(self.path, names)
            first, second = stratified(labels, self.test_fraction, generator(self.seed, "image_folder"))
            train, test = (images[first], labels[first]), (images[second], labels[second])
        augment = CropFlip(padding=max(1, self.size // 8)) if self.augment else None
        return Sourced(
            ArrayData({"inputs": train[0], "targets": train[1]}, augment, names),
            ArrayData({"inputs": test[0], "targets": test[1]}, None, names),
            classes=len(names),
            class_names=names,
            image_shape=(3, self.size, self.size),
        )

    def _read(self, folder: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Images ``(N, 3, size, size)`` uint8 and labels ``(N,)`` of the classes ``names``."""
        unknown = [found.name for found in _folders(folder) if found.name not in names]
        if unknown:
            raise DataError(f"'{folder}' has a class '{unknown[0]}' that the training set has not.")
        images: list[Tensor] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            before = len(images)
            if (folder / name).is_dir():
                images += self._images(folder / name)
            labels += [label] * (len(images) - before)
            if len(images) == before:
                raise DataError(f"'{folder / name}' holds no images. Remove the folder or add some.")
        return torch.stack(images), torch.tensor(labels)

    def _images(self, folder: Path) -> Iterator[Tensor]:
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError:
            raise MissingExtra("data set 'image_folder'", "images") from None
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() not in _SUFFIXES:
                continue
            try:
                with Image.open(file) as image:
                    resized = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
            except (OSError, UnidentifiedImageError):
                raise DataError(f"'{file}' is damaged or not an image. Remove or replace it.") from None
            yield image_tensor(resized)


@sources.register("npz")
@dataclass(frozen=True, kw_only=True)
class Npz(DataSource):
    """Arrays of a numpy archive, in one of two layouts.

    - ``train_images``, ``train_labels`` and, if there, ``test_images``, ``test_labels`` (MedMNIST);
    - ``x``, ``y`` and, if there, ``x_test``, ``y_test``.

    Images ``(N, H, W)`` or ``(N, H, W, C)`` become ``(N, C, H, W)``; numbers in a table ``(N, D)``
    become float32. Integer labels are numbered from 0 in ascending order, and their former values
    are the class names. Other arrays of the archive are not used.

    Args:
        path: the ``.npz`` file; arrays of objects are refused.
        test_fraction, seed: of the split, where the archive has no test arrays.
    """

    path: Path
    test_fraction: float = 0.2
    seed: int = 0

    def load(self) -> Sourced:
        arrays = self._arrays()
        inputs, targets = _inputs(arrays[0]), _targets(arrays[1], self.path)
        if len(inputs) != len(targets):
            raise DataError(f"'{self.path}' has {len(inputs)} inputs but {len(targets)} targets.")
        if len(arrays) == 4:
            train, test = (inputs, targets), (_inputs(arrays[2]), _targets(arrays[3], self.path))
        else:
            groups = torch.zeros(len(targets)) if targets.is_floating_point() else targets
            first, second = stratified(groups, self.test_fraction, generator(self.seed, "npz"))
            train, test = (inputs[first], targets[first]), (inputs[second], targets[second])
        names = None
        if not targets.is_floating_point():
            values = torch.cat([train[1], test[1]]).unique()
            names = tuple(str(int(value)) for value in values)
            train, test = ((x, torch.searchsorted(values, y.contiguous())) for x, y in (train, test))
        return Sourced(
            ArrayData({"inputs": train[0], "targets": train[1]}, class_names=names),
            ArrayData({"inputs": test[0], "targets": test[1]}, class_names=names),
            classes=None if names is None else len(names),
            class_names=names,
            image_shape=tuple(inputs.shape[1:]) if inputs.ndim == 4 else None,
        )

    def _arrays(self) -> list[np.ndarray[Any, Any]]:
        """Inputs and targets to train on and, if there, to test on."""
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                for keys in (
                    ("train_images", "train_labels", "test_images", "test_labels"),
                    ("x", "y", "x_test", "y_test"),
                ):
                    if keys[0] in archive and keys[1] in archive:
                        test = keys[2:] if keys[2] in archive and keys[3] in archive else ()
                        return [archive[key] for key in (*keys[:2], *test)]
                found = ", ".join(archive.files)
        except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
            raise DataError(
                f"'{self.path}' is not an .npz archive of numbers. Write it with numpy.savez."
            ) from None
        except OSError as error:
            raise DataError(f"cannot read '{self.path}': {error.strerror or error}.") from None
        raise DataError(f"'{self.path}' holds {found}; expected train_images and train_labels, or x and y.")


def _inputs(array: np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    elif tensor.ndim == 4 and tensor.shape[-1] in (1, 3, 4):
        tensor = tensor.permute(0, 3, 1, 2).contiguous()
    if tensor.dtype == torch.uint8 and tensor.ndim == 4:
        return tensor
    return tensor.float()


def _targets(array: np.ndarray[Any, Any], path: Path) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if tensor.is_floating_point():
        return tensor.float()
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != 1:
        raise DataError(f"'{path}' has labels of shape {tuple(tensor.shape)}; expected one integer a row.")
    return tensor.long()


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"'{path}' is not a folder. Give a folder with one sub-folder for each class.")
    folders = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not folders:
        raise DataError(f"'{path}' has no sub-folders. Give a folder with one sub-folder for each class.")
    return folders
