"""Weights to a file and back, and every way a file can be wrong."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from expunge.errors import CheckpointError, RunError
from expunge.training.checkpoint import load_weights, read_weights, save_weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch expunge_was_here",)


def equal(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def refuse(network: nn.Module, path: Path, message: str) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(network, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one" / "model.safetensors"
    saved, loaded = model(), model()
    saved(torch.rand(2, 1, 5, 5))  # moves the running statistics
    save_weights(saved, path)
    load_weights(loaded, path)
    assert equal(saved, loaded)
    assert [found.name for found in path.parent.iterdir()] == ["model.safetensors"]
    first = path.read_bytes()
    save_weights(saved, path)
    assert path.read_bytes() == first


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved, loaded = Tied(), Tied()
    save_weights(saved, path)
    assert sorted(read_weights(path)) == ["first.bias", "first.weight", "second.bias"]
    load_weights(loaded, path)
    assert equal(saved, loaded)
    assert loaded.first.weight is loaded.second.weight


def test_views_of_one_storage_are_written_apart(tmp_path: Path) -> None:
    network, both = nn.Module(), torch.arange(6.0)
    network.register_buffer("low", both[:3])
    network.register_buffer("high", both[3:])
    save_weights(network, tmp_path / "model.safetensors")
    tensors = read_weights(tmp_path / "model.safetensors")
    assert tensors["low"].tolist() == [0, 1, 2]
    assert tensors["high"].tolist() == [3, 4, 5]


def test_state_dicts_of_torch_save(tmp_path: Path) -> None:
    saved, loaded = model(), model()
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    load_weights(loaded, tmp_path / "model.pt")
    assert equal(saved, loaded)


def test_the_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    save_weights(model(), tmp_path / "model.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refuse(model(), tmp_path / "none.safetensors", "none.safetensors' does not exist")
    refuse(model(), tmp_path, "is a folder")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(model().state_dict(), path)
    else:
        save_weights(model(), path)
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    refuse(model(), path, f"{name}' is truncated or not a")


def test_foreign_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(nn.ModuleDict({name: nn.Linear(1, 1) for name in "abc"}), path)
    refuse(
        model(), path,
        "not a checkpoint of this Sequential: it misses '0.weight', '0.bias', '1.weight' and 4 more "
        "and has unexpected 'a.bias', 'a.weight', 'b.bias' and 3 more",
    )  # fmt: skip
    network = nn.Linear(2, 2)
    save_weights(nn.Linear(2, 2, bias=False), path)
    refuse(network, path, "it misses 'bias'. Give")


def test_wrong_shape(tmp_path: Path) -> None:
    save_weights(nn.Linear(3, 2), tmp_path / "model.safetensors")
    refuse(
        nn.Linear(4, 2), tmp_path / "model.safetensors",
        r"'weight' has shape \(2, 3\) in the file and \(2, 4\) in the model",
    )  # fmt: skip


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.bias[1] = bad
    save_weights(network, tmp_path / "model.safetensors")
    refuse(nn.Linear(3, 2), tmp_path / "model.safetensors", "holds NaN or infinite weights in 'bias'")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_are_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Runs()))
    refuse(model(), path, "holds more than tensors, and loading it could run code. Save the state dict alone")
    torch.save({"weight": Runs()}, path)
    refuse(model(), path, "holds more than tensors")
    torch.save(model(), path)
    refuse(model(), path, "holds more than tensors")
    assert not (tmp_path / "expunge_was_here").exists()


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"epoch": 3, "state_dict": {}}, "is not a state dict: it holds a mapping of 'epoch', 'state_dict'"),
        ([1, 2], "is not a state dict: it holds list"),
        (torch.zeros(2), "is not a state dict: it holds Tensor"),
    ],
)
def test_files_of_torch_save_that_are_no_state_dict(tmp_path: Path, held: object, message: str) -> None:
    torch.save(held, tmp_path / "model.pt")
    refuse(model(), tmp_path / "model.pt", message)


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(nn.Linear(1, 1), path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("expunge.training.checkpoint.save_file", full)
    with pytest.raises(
        RunError, match="cannot write weights to .*model.safetensors': No space left on device"
    ):
        save_weights(nn.Linear(1, 1), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RunError, match="cannot write weights"):
        save_weights(nn.Linear(1, 1), path / "below_a_file.safetensors")


def test_state_that_is_no_tensor(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"epoch": 1}

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(RunError, match="cannot save '_extra_state': it is dict, not a tensor"):
        save_weights(Extra(1, 1), tmp_path / "model.safetensors")


def test_half_precision_files_fill_single_precision_models(tmp_path: Path) -> None:
    network: dict[str, Tensor] = {
        name: value.bfloat16() for name, value in nn.Linear(2, 2).state_dict().items()
    }
    torch.save(network, tmp_path / "model.pt")
    loaded = nn.Linear(2, 2)
    load_weights(loaded, tmp_path / "model.pt")
    assert loaded.weight.dtype == torch.float32
    assert torch.equal(loaded.weight, network["weight"].float())
