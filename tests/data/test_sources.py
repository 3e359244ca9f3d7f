"""Data sources: the digits, the generators, files, and the published image sets."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge import config
from expunge.data import CropFlip, Sourced, sources
from expunge.data.arrays import ArrayData
from expunge.data.source import balanced, stratified
from expunge.errors import ConfigError, DataError

ROOT = os.environ.get("EXPUNGE_DATA", "")


def load(kind: str, **fields: object) -> Sourced:
    return config.build(sources, {"kind": kind, **fields}).load()


def real(name: str) -> pytest.MarkDecorator:
    there = bool(ROOT) and (Path(ROOT) / name).is_dir()
    return pytest.mark.skipif(not there, reason=f"EXPUNGE_DATA holds no {name}")


def test_digits() -> None:
    data = load("digits")
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.image_shape == (1, 8, 8)
    assert data.classes == 10
    inputs = data.train.column("inputs")
    assert inputs.shape == (1438, 1, 8, 8)
    assert inputs.min() == 0
    assert inputs.max() == 1
    assert torch.equal(inputs * 16, (inputs * 16).round())
    together = data.train.column("targets").bincount() + data.test.column("targets").bincount()
    assert together.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.test.column("targets").bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert isinstance(data.train, ArrayData)
    assert data.train.class_names == data.class_names


@pytest.mark.parametrize("kind", ["digits", "blobs", "linear", "tokens", "points"])
def test_a_seed_decides_everything(kind: str) -> None:
    before = torch.get_rng_state()
    first, again, other = load(kind), load(kind), load(kind, seed=1)
    assert first.train.fingerprint() == again.train.fingerprint()
    assert first.test.fingerprint() == again.test.fingerprint()
    assert first.train.fingerprint() != other.train.fingerprint()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "kind", ["digits", "blobs", "linear", "tokens", "points", "fashion_mnist", "cifar10"]
)
def test_configuration_round_trip(kind: str) -> None:
    source = config.build(sources, kind)
    assert config.build(sources, config.dump(source)) == source


def test_blobs_have_the_spread_they_were_given() -> None:
    data = load("blobs", size=4000, test_size=10, classes=4, features=3, spread=0.5)
    inputs, targets = data.train.column("inputs"), data.train.column("targets")
    assert targets.bincount().tolist() == [1000] * 4
    spreads = torch.stack([inputs[targets == label].std(0) for label in range(4)])
    assert torch.allclose(spreads, torch.tensor(0.5), atol=0.05)


def test_linear_is_solved_by_least_squares() -> None:
    data = load("linear", size=500, test_size=50, features=5, noise=0.0)
    solution = None
    for part in (data.train, data.test):
        design = torch.cat([part.column("inputs"), torch.ones(len(part), 1)], 1)
        targets = part.column("targets")
        if solution is None:
            solution = torch.linalg.lstsq(design, targets).solution
        assert targets.shape == (len(part), 1)
        assert torch.allclose(design @ solution, targets, atol=1e-4)


def test_tokens_follow_one_permutation_without_noise() -> None:
    data = load("tokens", noise=0.0, vocabulary=16, prompt=3, answer=5)
    successor: dict[int, int] = {}
    for part in (data.train, data.test):
        tokens, labels = part.column("input_ids"), part.column("labels")
        assert (labels[:, :3] == -100).all()
        assert torch.equal(labels[:, 3:], tokens[:, 3:])
        for before, after in zip(
            tokens[:, 2:-1].flatten().tolist(), tokens[:, 3:].flatten().tolist(), strict=True
        ):
            assert successor.setdefault(before, after) == after
    assert sorted(successor.values()) == list(range(16))


def test_points_lie_around_the_unit_circle() -> None:
    data = load("points", size=4000, conditions=4, spread=0.1)
    inputs, conditions = data.train.column("inputs"), data.train.column("targets")
    centres = torch.stack([inputs[conditions == c].mean(0) for c in range(4)])
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert torch.allclose(centres, expected, atol=0.02)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("blobs", {"size": 0}, "size: must be at least 1, got 0"),
        ("blobs", {"spread": -1.0}, "spread: must be at least 0, got -1.0"),
        ("tokens", {"noise": 1.5}, "noise: is a probability, got 1.5"),
        ("tokens", {"vocabulary": 1}, "vocabulary: must be at least 2"),
        ("digits", {"test_fraction": 1.0}, "test_fraction: must be above 0 and below 1, got 1.0"),
        ("digits", {"test_fraction": 0.0001}, "leaves a part empty"),
        ("image_folder", {"path": "x", "size": 0}, "size: is in pixels"),
    ],
)
def test_bad_fields(kind: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(kind, **fields)


def test_stratified_and_balanced() -> None:
    groups = torch.tensor([0] * 10 + [1] * 20)
    first, second = stratified(groups, 0.3, torch.Generator().manual_seed(0))
    assert groups[second].bincount().tolist() == [3, 6]
    assert sorted(torch.cat([first, second]).tolist()) == list(range(30))
    rows = balanced(groups, 7, torch.Generator().manual_seed(0), "train_size")
    assert groups[rows].bincount().tolist() == [4, 3]
    assert len(rows.unique()) == 7
    with pytest.raises(ConfigError, match=r"train_size: must be 1\.\.20 .*, got 22"):
        balanced(groups, 22, torch.Generator(), "train_size")


def picture(path: Path, colour: tuple[int, int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGB", (12, 10), colour).save(path)


def test_image_folder(tmp_path: Path) -> None:
    for k in range(5):
        picture(tmp_path / "dog" / f"{k}.png", (255, 0, 0))
        picture(tmp_path / "cat" / f"{k}.png", (0, 0, 255))
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    data = load("image_folder", path=str(tmp_path), size=8, augment=True)
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (3, 8, 8)
    assert data.train.augmented
    assert not data.test.augmented
    inputs, targets = data.train.column("inputs"), data.train.column("targets")
    assert inputs.shape == (8, 3, 8, 8)
    assert data.test.column("targets").tolist() == [0, 1]
    assert (inputs[targets == 1][:, 0] == 255).all()
    assert (inputs[targets == 0][:, 2] == 255).all()


def test_image_folder_with_parts_and_errors(tmp_path: Path) -> None:
    for part in ("train", "test"):
        picture(tmp_path / part / "cat" / "0.png", (0, 0, 0))
        picture(tmp_path / part / "dog" / "0.png", (9, 9, 9))
    data = load("image_folder", path=str(tmp_path))
    assert (len(data.train), len(data.test)) == (2, 2)
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="1.png' is damaged or not an image"):
        load("image_folder", path=str(tmp_path))
    (tmp_path / "train" / "dog" / "1.png").unlink()
    picture(tmp_path / "test" / "emu" / "0.png", (0, 0, 0))
    with pytest.raises(DataError, match="has a class 'emu' that the training set has not"):
        load("image_folder", path=str(tmp_path))
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "test" / "emu" / "0.png").rename(tmp_path / "0.png")
    (tmp_path / "test" / "emu").rmdir()
    with pytest.raises(DataError, match="empty' holds no images"):
        load("image_folder", path=str(tmp_path))
    with pytest.raises(DataError, match="none' is not a folder"):
        load("image_folder", path=str(tmp_path / "none"))


def test_npz_layouts(tmp_path: Path) -> None:
    images = np.arange(10 * 4 * 4, dtype=np.uint8).reshape(10, 4, 4)
    labels = np.arange(10, dtype=np.uint8)[:, None] % 2
    np.savez(
        tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels
    )
    data = load("npz", path=str(tmp_path / "a.npz"))
    assert data.image_shape == (1, 4, 4)
    assert torch.equal(data.train.column("inputs")[:, 0], torch.from_numpy(images))
    assert data.test.column("targets").tolist() == [0, 1] * 5

    np.savez(tmp_path / "b.npz", x=np.ones((10, 3), np.uint8), y=np.array([3, 7] * 5))
    data = load("npz", path=str(tmp_path / "b.npz"))
    assert (len(data.train), len(data.test)) == (8, 2)
    assert data.class_names == ("3", "7")
    assert data.test.column("targets").tolist() == [0, 1]
    assert torch.equal(data.train.column("inputs"), torch.ones(8, 3))

    np.savez(tmp_path / "c.npz", x=np.zeros((10, 3)), y=np.linspace(0, 1, 10))
    data = load("npz", path=str(tmp_path / "c.npz"))
    assert data.classes is None
    assert data.train.column("targets").dtype == torch.float32

    colour = np.zeros((4, 5, 6, 3), np.uint8)
    np.savez(tmp_path / "d.npz", x=colour, y=np.array([0, 1, 0, 1]))
    assert load("npz", path=str(tmp_path / "d.npz"), test_fraction=0.5).image_shape == (3, 5, 6)


def test_npz_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match="cannot read .*a.npz': No such file"):
        load("npz", path=str(path))
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="not an .npz archive of numbers"):
        load("npz", path=str(path))
    np.savez(path, a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(DataError, match="holds a, b; expected train_images and train_labels, or x and y"):
        load("npz", path=str(path))
    np.savez(path, x=np.zeros((3, 1)), y=np.zeros(2))
    with pytest.raises(DataError, match="has 3 inputs but 2 targets"):
        load("npz", path=str(path))
    np.savez(path, x=np.zeros((2, 1)), y=np.zeros((2, 3), int))
    with pytest.raises(DataError, match=r"labels of shape \(2, 3\)"):
        load("npz", path=str(path))
    np.savez(path, x=np.array([{}, {}], dtype=object), y=np.zeros(2))
    with pytest.raises(DataError, match="not an .npz archive of numbers"):
        load("npz", path=str(path))


@pytest.mark.parametrize("kind", ["fashion_mnist", "cifar10"])
def test_no_folder_and_no_network(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(
        DataError, match=r"set EXPUNGE_DATA to a folder .* or connect to the network .*offline"
    ):
        load(kind)


def test_downloads_are_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.data.download import cached

    source = tmp_path / "source"
    source.write_bytes(b"contents")
    right = hashlib.sha256(b"contents").hexdigest()
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="is damaged: its SHA-256 is .*, expected 000000000000"):
        cached("name", "file", "0" * 64, source.as_uri())
    assert not (tmp_path / "cache").exists()
    assert cached("name", "file", right, source.as_uri()) == b"contents"
    source.unlink()
    assert cached("name", "file", right, source.as_uri()) == b"contents"
    assert [path.name for path in (tmp_path / "cache" / "name").iterdir()] == ["file"]
    (tmp_path / "cache" / "name" / "file").write_bytes(b"content")
    with pytest.raises(DataError, match="is damaged"):
        cached("name", "file", right, source.as_uri())


def test_damaged_and_missing_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    (tmp_path / "fashion-mnist").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*train-images-idx3-ubyte.gz': No such file"):
        load("fashion_mnist")
    (tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"half")
    with pytest.raises(DataError, match="is damaged"):
        load("fashion_mnist")
    pytest.importorskip("PIL")
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*train_1.webp': No such file"):
        load("cifar10")
    (tmp_path / "cifar10" / "train_1.webp").write_bytes(b"half")
    with pytest.raises(DataError, match=r"train_1.webp' is damaged or not an image"):
        load("cifar10")


@pytest.mark.real_data
@real("fashion-mnist")
def test_fashion_mnist() -> None:
    data = load("fashion_mnist", train_size=1000, test_size=100, augment=True)
    assert data.image_shape == (1, 28, 28)
    assert data.train.column("targets").bincount().tolist() == [100] * 10
    assert data.test.column("targets").bincount().tolist() == [10] * 10
    assert isinstance(data.train, ArrayData)
    assert data.train.augment == CropFlip()
    assert load("fashion_mnist", train_size=1000).train.fingerprint() != data.train.fingerprint()
    whole = load("fashion_mnist")
    assert (len(whole.train), len(whole.test)) == (60000, 10000)
    assert whole.train.column("targets")[:5].tolist() == [9, 0, 0, 3, 0]


@pytest.mark.real_data
@real("cifar10")
def test_cifar10() -> None:
    pytest.importorskip("PIL")
    data = load("cifar10")
    assert (len(data.train), len(data.test)) == (50000, 10000)
    assert data.train.column("targets")[:5].tolist() == [6, 9, 9, 4, 1]  # the official order
    assert data.test.column("targets")[:100].bincount().tolist() == [10] * 10
    mean = data.train.column("inputs").double().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.49140, 0.48216, 0.44653], dtype=torch.float64), atol=1e-5)
    assert load("cifar10", train_size=50).train.column("targets").bincount().tolist() == [5] * 10
