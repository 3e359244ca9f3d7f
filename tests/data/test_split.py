"""Splits of training data into what is forgotten and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from expunge.data import ArrayData, Split, StreamData, read_ids
from expunge.errors import DataError


def toy(n: int = 6) -> ArrayData:
    return ArrayData({"inputs": torch.arange(2 * n).view(n, 2).float(), "targets": torch.arange(n) % 3})


def test_forget_and_retain_share_out_the_training_data() -> None:
    split = Split.from_ids(toy(), [4, 1])
    assert split.forget.ids.tolist() == [4, 1]
    assert split.retain.ids.tolist() == [0, 2, 3, 5]
    assert list(split.parts()) == ["forget", "retain"]


def test_optional_parts() -> None:
    split = Split.from_ids(toy(), [0], test=toy(2), holdout=(np.zeros((3, 2)), np.zeros(3)))
    assert {name: len(data) for name, data in split.parts().items()} == {
        "forget": 1, "retain": 5, "test": 2, "holdout": 3,
    }  # fmt: skip


def test_the_training_data_may_be_a_subset() -> None:
    split = Split.from_ids(toy().subset([5, 3, 1]), np.array([3]))
    assert split.forget.ids.tolist() == [3]
    assert split.retain.ids.tolist() == [5, 1]


def test_kinds_of_training_data() -> None:
    inputs, targets = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    for train in ((inputs, targets), {"inputs": inputs, "targets": targets}, TensorDataset(inputs, targets)):
        split = Split.from_ids(train, [0, 1])
        assert isinstance(split.forget, ArrayData)
        assert split.forget.column("targets").tolist() == [0, 1]
    streamed = Split.from_ids(Subset(TensorDataset(inputs, targets), [3, 2, 1]), [0])
    assert isinstance(streamed.forget, StreamData)
    assert streamed.forget.column("targets").tolist() == [1]
    assert streamed.retain.column("targets").tolist() == [0, 1]


def test_fingerprint_depends_on_every_part() -> None:
    prints = {
        Split.from_ids(toy(), [1]).fingerprint(),
        Split.from_ids(toy(), [2]).fingerprint(),
        Split.from_ids(toy(), [1], test=toy(2)).fingerprint(),
        Split.from_ids(toy(), [1], holdout=toy(2)).fingerprint(),
        Split.from_ids(toy(7), [1]).fingerprint(),
    }
    assert len(prints) == 5
    assert Split.from_ids(toy(), [1]).fingerprint() in prints


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ([1, 6], r"forget ids hold 6, which is not in the data: the data set's ids are 0\.\.5"),
        ([1, 2, 2], "forget ids hold 2 more than once"),
        ([], "forget ids are empty"),
        ([1.0], "forget ids must be integers"),
        (range(6), "the forget set is all 6 training examples, so nothing is retained"),
    ],
)
def test_bad_forget_ids(forget: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Split.from_ids(toy(), forget)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (3, "train is int; expected expunge Data"),
        (torch.zeros(3), "train is Tensor; expected"),
        (np.zeros(3), "train is ndarray; expected"),
        ("path", "train is str; expected"),
        ((torch.zeros(3),), r"train has 1 arrays; expected the pair \(inputs, targets\)"),
    ],
)
def test_bad_training_data(train: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Split.from_ids(train, [0])


def test_ids_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# to forget\n3\n\n17  # a face\n")
    np.save(tmp_path / "a.npy", np.array([3, 17], dtype=np.int32))
    (tmp_path / "a.json").write_text(json.dumps([3, 17]))
    for name in ("a.txt", "a.npy", "a.json"):
        ids = read_ids(tmp_path / name)
        assert ids.tolist() == [3, 17]
        assert ids.dtype == torch.int64
    assert read_ids(str(tmp_path / "a.txt")).tolist() == [3, 17]


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.txt", b"3\nx\n", "a.txt' line 2 is not an integer: 'x'"),
        ("a.txt", b"\xff\xfe\xff", "not a text file"),
        ("a.txt", b"# nothing\n", "a.txt' are empty"),
        ("a.txt", b"3\n3\n", "a.txt' hold 3 more than once"),
        ("a.npy", b"nonsense", "a.npy' is not an array of numbers"),
        ("a.npy", b"", "a.npy' is not an array of numbers"),
        ("a.json", b"{", "a.json' is not valid JSON"),
        ("a.json", b"[1.5]", "a.json' is not a list of integers"),
        ("a.json", b'{"id": [1]}', "a.json' is not a list of integers"),
        ("a.csv", b"1", "cannot read ids from .*a.csv'. Give a .txt, .npy or .json file"),
    ],
)
def test_bad_id_files(tmp_path: Path, name: str, contents: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(DataError, match=message) as caught:
        read_ids(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_id_file_and_pickles(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read ids from .*none.txt': No such file"):
        read_ids(tmp_path / "none.txt")
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not an array of numbers"):
        read_ids(tmp_path / "a.npy")
