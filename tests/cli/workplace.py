"""A folder with experiments, data, ids and weights, good ones and bad ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from expunge.training.checkpoint import save_weights
from expunge.training.networks import MLP

BASE = {
    "name": "base",
    "data": {"kind": "blobs", "size": 80, "test_size": 40},
    "model": {"kind": "mlp", "inputs": 2, "outputs": 4, "hidden": [8]},
    "task": {"kind": "classification", "classes": 4},
    "train": {"epochs": 2, "batch_size": 32, "optim": {"kind": "sgd", "lr": 0.05}},
    "forget": {"random": {"kind": "random_set", "size": 8}},
    "methods": {"finetune": {"epochs": 1}},
    "engine": {"device": "cpu"},
}

LOADABLE = """
import torch
def build(): return torch.nn.Linear(2, 4)
def fail(): return {}["weights"]
def number(): return 3
def narrow(): return torch.nn.Linear(1, 4)
def odd(): return torch.nn.Linear(2, 5)
"""


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this code came from a checkpoint",)


def furnish(folder: Path) -> Path:
    """Fills the folder with everything that the cases name."""
    _experiments(folder)
    _arrays(folder)
    _ids(folder)
    _weights(folder)
    _results(folder)
    (folder / "mine.py").write_text(LOADABLE)
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "folder" / "empty_class").mkdir(parents=True)
    return folder


def _experiments(folder: Path) -> None:
    diffusion = {
        "data": {"kind": "points", "size": 40, "test_size": 20},
        "model": {"kind": "tiny_denoiser", "inputs": 2, "width": 8},
        "task": {"kind": "diffusion", "timesteps": 10},
        "methods": {"random_labels": None},
    }
    regression = {
        "data": {"kind": "linear", "size": 40, "test_size": 20},
        "model": {"kind": "mlp", "inputs": 8, "outputs": 1},
        "task": "regression",
        "forget": {"class_set": {"classes": [1]}},
    }
    images = {
        "data": "digits",
        "model": {"kind": "small_cnn", "classes": 10, "in_channels": 1},
        "task": {"kind": "classification", "classes": 10},
    }
    arrays = {
        "data": {"kind": "npz", "path": "arrays.npz"},
        "model": {"kind": "mlp", "inputs": 2, "outputs": 2},
        "task": {"kind": "classification", "classes": 2},
    }
    for name, changes in {
        "base": {},
        "diffusion": diffusion,
        "regression": regression,
        "images": images,
        "arrays": arrays,
    }.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**BASE, **changes}))
    (folder / "no_name.yaml").write_text(yaml.safe_dump({k: v for k, v in BASE.items() if k != "name"}))
    (folder / "invalid.yaml").write_text("name: a\n  data: [blobs\n")
    (folder / "empty.yaml").write_text("")
    (folder / "list.yaml").write_text("- name\n- data\n")
    (folder / "binary.yaml").write_bytes(bytes(range(256)))


def _arrays(folder: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(12, 2)).astype("float32"), np.arange(12) % 2
    broken = x.copy()
    broken[5, 1] = np.nan
    np.savez(folder / "inputs.npz", x=x)
    np.savez(folder / "nan.npz", x=broken, y=y, x_test=x, y_test=y)
    np.savez(folder / "unequal.npz", x=x, y=y[:11])
    np.savez(folder / "objects.npz", x=np.array([{}, None]), y=y[:2])
    np.savez(folder / "few.npz", x=x[:3], y=y[:3], x_test=x, y_test=y)
    (folder / "text.npz").write_text("these are no arrays")
    blobs = np.random.default_rng(0).normal(size=(120, 2)).astype("float32")
    labels = np.arange(120) % 4
    np.savez(folder / "blobs.npz", x=blobs[:80], y=labels[:80], x_test=blobs[80:], y_test=labels[80:])


def _ids(folder: Path) -> None:
    for name, lines in {
        "ids.txt": [0, 1, 2],
        "ids.csv": [0, 1, 2],
        "far.txt": [0, 99],
        "twice.txt": [3, 4, 3],
        "words.txt": [1, "three"],
        "none.txt": [],
        "every.txt": range(80),
    }.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    (folder / "binary.txt").write_bytes(bytes(range(256)))


def _weights(folder: Path) -> None:
    torch.manual_seed(0)
    good, broken = MLP(2, (8,), 4), MLP(2, (8,), 4)
    save_weights(good, folder / "trained.safetensors")
    save_weights(MLP(2, (9,), 4), folder / "wide.safetensors")
    save_weights(nn.Conv2d(3, 3, 3), folder / "foreign.safetensors")
    next(broken.parameters()).data[0, 0] = torch.nan
    save_weights(broken, folder / "nan.safetensors")
    whole = (folder / "trained.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "text.safetensors").write_text("weights\n")
    (folder / "text.pt").write_text("weights\n")
    (folder / "hollow").mkdir()
    (folder / "hollow" / "config.json").write_text("{}")
    (folder / "evil.pt").write_bytes(pickle.dumps(_Evil()))
    torch.save({"epoch": 3, "model": good.state_dict()}, folder / "state.pt")


def _results(folder: Path) -> None:
    for name, text in {
        "truncated": '{"schema": 1, "name": "a", "tab',
        "newer": json.dumps({"schema": 99}),
        "damaged": json.dumps({"schema": 1, "name": "a", "provenance": {}, "tables": [{"rows": [{}]}]}),
    }.items():
        (folder / name).mkdir()
        (folder / name / "result.json").write_text(text)
