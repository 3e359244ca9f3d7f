"""Published image data sets: Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import tarfile
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from expunge.data.arrays import ArrayData
from expunge.data.augment import CropFlip
from expunge.data.download import cached, local_folder, read_checked
from expunge.data.source import DataSource, Sourced, balanced, sources
from expunge.errors import DataError, MissingExtra
from expunge.seeding import generator

Part = tuple[Tensor, Tensor]
"""Images ``(N, C, H, W)`` uint8 and labels ``(N,)`` int64."""


@dataclass(frozen=True, kw_only=True)
class PublishedImages(DataSource):
    """Labelled images with an official training and test set.

    Read from ``$EXPUNGE_DATA`` where the folder is there, otherwise downloaded once; the checksums
    are verified. With a ``train_size`` the training examples are numbered anew, ``0..train_size - 1``.

    Args:
        train_size, test_size: a random subset with as many of each class; ``None`` for all.
        augment: shift by up to 4 pixels and mirror in training.
        seed: of the subsets.
    """

    train_size: int | None = None
    test_size: int | None = None
    augment: bool = False
    seed: int = 0

    @abstractmethod
    def parts(self) -> tuple[Part, Part, tuple[str, ...]]:
        """Training part, test part and class names, complete."""

    def load(self) -> Sourced:
        train, test, names = self.parts()
        augment = CropFlip() if self.augment else None
        return Sourced(
            self._subset(train, self.train_size, "train_size", names, augment),
            self._subset(test, self.test_size, "test_size", names, None),
            classes=len(names),
            class_names=names,
            image_shape=tuple(train[0].shape[1:]),
        )

    def _subset(
        self, part: Part, size: int | None, name: str, names: tuple[str, ...], augment: CropFlip | None
    ) -> ArrayData:
        images, labels = part
        if size is not None:
            rows = balanced(labels, size, generator(self.seed, name), name)
            images, labels = images[rows], labels[rows]
        return ArrayData({"inputs": images, "targets": labels}, augment, names)


_FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@sources.register("fashion_mnist")
@dataclass(frozen=True, kw_only=True)
class FashionMnist(PublishedImages):
    """Fashion-MNIST: 70,000 grey 28×28 pictures of clothes, 10 classes (Xiao et al., 2017)."""

    def parts(self) -> tuple[Part, Part, tuple[str, ...]]:
        folder = local_folder("fashion-mnist")
        train_images, train_labels, test_images, test_labels = (
            _read_idx(gzip.decompress(_fashion_file(folder, file))) for file in _FASHION_FILES
        )
        train = train_images[:, None], train_labels.long()
        return train, (test_images[:, None], test_labels.long()), _FASHION_CLASSES


def _fashion_file(folder: Path | None, file: str) -> bytes:
    sha256 = _FASHION_FILES[file]
    if folder is not None:
        return read_checked(folder / file, sha256)
    return cached("fashion-mnist", file, sha256, f"{_FASHION_URL}/{file}")


def _read_idx(contents: bytes) -> Tensor:
    """The IDX format: two zero bytes, a type (8 is uint8), the rank, the sizes, the values."""
    rank = contents[3]
    sizes = np.frombuffer(contents, ">u4", rank, offset=4).astype(np.int64)
    values = np.frombuffer(contents, np.uint8, offset=4 + 4 * rank)
    return torch.from_numpy(values.reshape(sizes).copy())


_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR_ARCHIVE = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_CIFAR_LABELS = "7b3036f20023dd6121193d67eb3a40980b707f3524a8cff7f6f0f7312eaba10e"
_CIFAR_SHEETS = {  # SHA-256 of the decoded pixels, (10000, 32, 32, 3) uint8
    "train_1": "fc115a3de050d667b88cbd5b0b9612ebf996c54230fe7758f3a14bb5af9a1c27",
    "train_2": "89e609b642f687bc796fa3bfa4211005582a0e8131d463d996d11ddb297d312e",
    "train_3": "93a365823e61729490a8801d80864ccd0ab1e8c98f19d71af65644d1c5f1486e",
    "train_4": "809eb95ecd057a36516318f5023ea619009dd70dd38193db9da43125a928e6fa",
    "train_5": "d05b7d66d216d6df882cc760cdc0ff2f1f0437abf699ed16005c021ef0add9cb",
    "test": "739baaf73b192409b933858ebd38e2a5c6865e0afba230f9a75d9fa1fbd83e04",
}
_CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@sources.register("cifar10")
@dataclass(frozen=True, kw_only=True)
class Cifar10(PublishedImages):
    """CIFAR-10: 60,000 colour 32×32 images, 10 classes (Krizhevsky, 2009).

    The training set is in the official order, so published index lists apply. The folder
    ``cifar10`` holds lossless WebP sheets of 100 × 100 images and interleaves the classes of the
    test set; the download is the authors' binary version, with the test set in the official order.
    """

    def parts(self) -> tuple[Part, Part, tuple[str, ...]]:
        folder = local_folder("cifar10")
        train, test = _cifar_archive() if folder is None else _cifar_sheets(folder)
        return train, test, _CIFAR_CLASSES


@functools.lru_cache(maxsize=1)
def _cifar_sheets(folder: Path) -> tuple[Part, Part]:
    *train, test = (_sheet(folder, name) for name in _CIFAR_SHEETS)
    with np.load(io.BytesIO(read_checked(folder / "labels.npz", _CIFAR_LABELS)), allow_pickle=False) as file:
        train_labels, test_labels = (
            torch.from_numpy(file[key]).long() for key in ("train_labels", "test_labels")
        )
    return (torch.cat(train), train_labels), (test, test_labels)


def _sheet(folder: Path, name: str) -> Tensor:
    """One sheet of 100 rows of 100 images, decoded to ``(10000, 3, 32, 32)`` uint8."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtra("data set 'cifar10'", "images") from None
    path = folder / f"{name}.webp"
    try:
        with Image.open(path) as image:
            sheet = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise DataError(f"'{path}' is damaged or not an image. Restore the file.") from None
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}. Restore the file.") from None
    if sheet.shape != (3200, 3200, 3):
        raise DataError(f"'{path}' is damaged: its pixels have shape {sheet.shape}.")
    pixels = sheet.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(10000, 32, 32, 3)
    if hashlib.sha256(pixels.data).hexdigest() != _CIFAR_SHEETS[name]:
        raise DataError(f"'{path}' is damaged: its pixels are not those of CIFAR-10. Restore the file.")
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


@functools.lru_cache(maxsize=1)
def _cifar_archive() -> tuple[Part, Part]:
    """The authors' binary version: records of one label byte and 3 × 1024 pixel bytes."""
    contents = cached("cifar10", _CIFAR_URL.rpartition("/")[2], _CIFAR_ARCHIVE, _CIFAR_URL)
    files = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(fileobj=io.BytesIO(contents)) as archive:
        members = {Path(member.name).name: member for member in archive.getmembers()}
        batches = []
        for file in files:
            extracted = archive.extractfile(members[file])
            assert extracted is not None  # the archive's checksum is known, and so is what it holds
            batches.append(np.frombuffer(extracted.read(), np.uint8).reshape(-1, 3073))
    parts = [
        (
            torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy()),
            torch.from_numpy(rows[:, 0].astype(np.int64)),
        )
        for rows in (np.concatenate(batches[:5]), batches[5])
    ]
    return parts[0], parts[1]
