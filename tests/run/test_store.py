"""A piece is finished entirely or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from expunge.errors import RunError
from expunge.store import Store, key_of, write_text


def test_a_value_is_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, object]:
        calls.append(1)
        return {"ids": [1, 2], "share": 0.1}

    store = Store(tmp_path)
    assert (
        store.value("a", "k", compute)
        == Store(tmp_path).value("a", "k", compute)
        == {"ids": [1, 2], "share": 0.1}
    )
    assert len(calls) == 1
    assert store.has("a", "k")
    assert not store.has("a", "other")


def test_a_model_comes_back_with_the_same_weights(tmp_path: Path) -> None:
    trained = nn.Linear(3, 2)
    first = Store(tmp_path).model("m", "k", lambda: nn.Linear(3, 2), lambda: ({"cost": 1}, trained))
    again = Store(tmp_path).model("m", "k", lambda: nn.Linear(3, 2), lambda: pytest.fail("computed again"))
    for value, model in (first, again):
        assert value == {"cost": 1}
        assert model is not None
        assert not model.training
        assert torch.equal(model.weight, trained.weight)


def test_a_piece_without_a_model(tmp_path: Path) -> None:
    for _ in range(2):
        value, model = Store(tmp_path).model(
            "m", "k", lambda: nn.Linear(1, 1), lambda: ({"error": "no"}, None)
        )
        assert value == {"error": "no"}
        assert model is None


def test_what_was_interrupted_is_not_there(tmp_path: Path) -> None:
    def interrupted() -> dict[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).value("a", "k", interrupted)
    assert list(tmp_path.iterdir()) == []
    assert Store(tmp_path).value("a", "k", lambda: {"b": 1}) == {"b": 1}


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".a-k.123.partial").mkdir()
    (tmp_path / ".a-k.123.partial" / "value.json").write_text("{")
    Store(tmp_path).tidy()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_piece_is_named(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.value("a", "k", lambda: {"b": 1})
    (tmp_path / "a-k" / "value.json").write_text(text)
    with pytest.raises(RunError, match="a-k.*Delete"):
        store.value("a", "k", lambda: {"b": 1})


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    Store(tmp_path).model("m", "k", lambda: nn.Linear(3, 2), lambda: ({}, nn.Linear(3, 2)))
    file = tmp_path / "m-k" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(RunError, match="m-k.*Delete"):
        Store(tmp_path).model("m", "k", lambda: nn.Linear(3, 2), lambda: pytest.fail("computed again"))


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    Store(tmp_path / "store").value("../../evil /x", "k", dict)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        Store(tmp_path / "file" / "store")


def test_keys_depend_on_every_part_and_not_on_the_order_of_a_mapping() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert len({key_of(1), key_of("1"), key_of(1, None), key_of([1]), key_of(1.5)}) == 5


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
