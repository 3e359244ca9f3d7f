"""``expunge combine``: vectors of two requests added, with given weights and with learned ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from expunge.cli.main import main
from expunge.methods.guards.forget_vector import VECTOR
from expunge.training.checkpoint import read_weights, save_weights, write_weights
from expunge.training.networks import MLP

EXPERIMENT = {
    "name": "tiny",
    "data": {"kind": "blobs", "size": 80, "test_size": 40},
    "model": {"kind": "mlp", "inputs": 2, "outputs": 4, "hidden": [8]},
    "task": {"kind": "classification", "classes": 4},
    "train": {"epochs": 2, "batch_size": 32, "optim": {"kind": "sgd", "lr": 0.05}},
    "forget": {"random": {"kind": "random_set", "size": 8}},
    "methods": {"finetune": {"epochs": 1}},
    "retrained": 3,
    "metrics": [{"kind": "accuracy", "part": "forget"}],
    "engine": {"device": "cpu"},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """Two vectors that ``unlearn`` learned on one model, and ids."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    torch.manual_seed(0)
    save_weights(MLP(2, (8,), 4), "trained.safetensors")
    for name, ids in (("a", (3, 5)), ("b", (10, 20, 30))):
        Path(f"{name}.txt").write_text("\n".join(map(str, ids)))
        words = f"unlearn tiny.yaml epochs=1 --model trained.safetensors --forget {name}.txt"
        assert main([*words.split(), "--method", "forget_vector", "--output", f"{name}.safetensors"]) == 0
    capsys.readouterr()
    return tmp_path


def vector(name: str) -> torch.Tensor:
    return read_weights(f"{name}.safetensors")[VECTOR]


def test_vectors_are_added_with_weights_and_the_model_stays(place: Path, capsys) -> None:
    words = "combine --model a.safetensors --model b.safetensors"
    assert main([*words.split(), "--output", "new/sum.safetensors"]) == 0
    said = capsys.readouterr().out.splitlines()
    expected = ["       1 × a.safetensors", "       1 × b.safetensors", "Weights: new/sum.safetensors"]
    assert said == expected
    torch.testing.assert_close(vector("new/sum"), vector("a") + vector("b"))
    weights = "--weight 0.5 --weight -2 --output away.safetensors"
    assert main([*words.split(), *weights.split()]) == 0
    torch.testing.assert_close(vector("away"), 0.5 * vector("a") - 2 * vector("b"))
    before, after = read_weights("trained.safetensors"), read_weights("away.safetensors")
    assert before.keys() == after.keys() - {VECTOR}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_weights_are_learned_for_another_forget_set(place: Path, capsys) -> None:
    Path("other.txt").write_text("3\n10\n")
    words = (
        "combine tiny.yaml epochs=3 norm=0.01 --forget other.txt --model a.safetensors --model b.safetensors"
    )
    assert main([*words.split(), "--output", "learned.safetensors"]) == 0
    first, second = (float(line.split(" × ")[0]) for line in capsys.readouterr().out.splitlines()[:2])
    assert (first, second) != (1.0, 1.0)
    found = first * vector("a") + second * vector("b")
    torch.testing.assert_close(vector("learned"), found, rtol=0.01, atol=0.01)  # printed with three digits


def test_the_result_can_be_judged(place: Path) -> None:
    words = "combine --model a.safetensors --model b.safetensors --weight 30 --weight 30"
    assert main(words.split()) == 0
    words = (
        "evaluate tiny.yaml --original trained.safetensors --unlearned combined.safetensors "
        "--unlearned trained.safetensors --forget a.txt --directory judged"
    )
    assert main(words.split()) == 0
    rows = json.loads(Path("judged/result.json").read_text())["tables"][0]["rows"]
    assert [row["role"] for row in rows].count("unlearned") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model a.safetensors", "model: give at least two files"),
        ("--model a.safetensors --model none.safetensors", "'none.safetensors' does not exist"),
        ("--model a.safetensors --model trained.safetensors", "file 2 holds no 'forget_vector'"),
        ("--model a.safetensors --model other.safetensors", "files 1 and 2 are not of one model: 'body"),
        ("--model a.safetensors --model wide.safetensors", "files 1 and 2 are not of one model: 'body"),
        ("--model a.safetensors --model b.safetensors --weight 1", "weight: got 1 for 2 files"),
        ("--model a.safetensors --model b.safetensors --weight x", "for '--weight'"),
        ("--model a.safetensors --model b.safetensors --weight nan --weight 1", "weight: must be finite"),
        ("tiny.yaml --model a.safetensors --model b.safetensors", "both an EXPERIMENT and --forget"),
        ("--model a.safetensors --model b.safetensors --forget a.txt", "both an EXPERIMENT and --forget"),
        ("epochs=3 --model a.safetensors --model b.safetensors", "both an EXPERIMENT and --forget"),
        (
            "tiny.yaml --forget a.txt --weight 1 --weight 1 --model a.safetensors --model b.safetensors",
            "weight: are learned for --forget",
        ),
        (
            "tiny.yaml epoch=3 --forget a.txt --model a.safetensors --model b.safetensors",
            "Did you mean 'epochs'",
        ),
        (
            "tiny.yaml --forget a.txt --model wide.safetensors --model wide.safetensors",
            "'wide.safetensors' does not fit",
        ),
    ],
)
def test_mistakes_are_one_line(place: Path, words: str, said: str, capsys) -> None:
    torch.manual_seed(1)
    for name, network in (("other", MLP(2, (8,), 4)), ("wide", MLP(2, (9,), 4))):
        write_weights({**network.state_dict(), VECTOR: torch.zeros(2)}, f"{name}.safetensors")
    assert main(["combine", *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("combined.safetensors").exists()
