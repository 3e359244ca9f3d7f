"""What the commands print and write when all is well."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from expunge.cli.main import COMMANDS, main
from expunge.training.checkpoint import read_weights, save_weights
from expunge.training.networks import MLP

EXPERIMENT = {
    "name": "tiny",
    "data": {"kind": "blobs", "size": 80, "test_size": 40},
    "model": {"kind": "mlp", "inputs": 2, "outputs": 4, "hidden": [8]},
    "task": {"kind": "classification", "classes": 4},
    "train": {"epochs": 2, "batch_size": 32},
    "forget": {"random": {"kind": "random_set", "size": 8}, "hard": {"kind": "bilevel", "size": 5}},
    "methods": {"finetune": {"epochs": 1}, "slow": {"kind": "finetune"}},
    "engine": {"device": "cpu"},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with an experiment, weights and ids."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    torch.manual_seed(0)
    save_weights(MLP(2, (8,), 4), "trained.safetensors")
    Path("ids.txt").write_text("# chosen by hand\n3\n5  # this one too\n")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Example: expunge {command}" in said
    assert said.count(". ") >= 2


def test_help_is_fast_and_without_torch() -> None:
    code = (
        "import sys; from expunge.cli.main import main; main(['--help']); assert 'torch' not in sys.modules"
    )
    source = Path(sys.modules["expunge"].__path__[0]).parent
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_the_package_is_the_command_too() -> None:
    said = subprocess.run([sys.executable, "-m", "expunge"], capture_output=True, text=True, check=False)
    assert "validate" in said.stdout + said.stderr


def test_nothing_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "expunge demo" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert re.fullmatch(r"expunge \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_validate_says_what_would_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "tiny.yaml", "retrained=3", "repeats=2"]) == 0
    said = capsys.readouterr().out
    for part in (
        "80 training and 40 test",
        "random: 8",
        "hard: 5",
        "slow (finetune)",
        "7 trainings",
        "8 unlearn",
    ):
        assert part in said
    assert not (place / "runs").exists()


def test_run_then_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny.yaml", "forget.hard.size=4"]) == 0
    first = capsys.readouterr()
    assert "runs/tiny/report.html" in first.out
    assert "[27/27]" in first.err
    (place / "runs/tiny/report.html").unlink()
    assert main(["report", "runs/tiny"]) == 0
    assert capsys.readouterr().out == first.out
    assert (place / "runs/tiny/report.html").exists()
    assert main(["run", "tiny.yaml", "forget.hard.size=4"]) == 0
    assert capsys.readouterr().err == ""  # every piece was there


def test_unlearn_then_evaluate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("trained.safetensors").read_bytes()
    words = (
        "unlearn tiny.yaml epochs=2 --model trained.safetensors --forget ids.txt --method salun "
        "--output new/a.safetensors"
    )
    assert main(words.split()) == 0
    assert "salun forgot 2 of 80 examples" in capsys.readouterr().out
    assert Path("trained.safetensors").read_bytes() == before
    old, new = read_weights("trained.safetensors"), read_weights("new/a.safetensors")
    assert any(not torch.equal(old[name], new[name]) for name in old)
    Path("original.safetensors").write_bytes(before)
    words = (
        "evaluate tiny.yaml --original trained.safetensors --unlearned new/a.safetensors --unlearned "
        "new/a.safetensors --unlearned original.safetensors --forget ids.txt --directory judged"
    )
    assert main(words.split()) == 0
    result = json.loads(Path("judged/result.json").read_text())
    names = [row["name"] for row in result["tables"][0]["rows"]]
    assert names == [
        "original",
        "retrained 1",
        "retrained 2",
        "retrained 3",
        "a",
        "a 2",
        "unlearned original",
    ]
    assert {path.name for path in Path("judged").iterdir()} == {
        "result.json", "report.html", "table.csv", "card.md", "store",
    }  # fmt: skip
    assert main([*words.split(), "--retrained", "trained.safetensors"]) == 0
    result = json.loads(Path("judged/result.json").read_text())
    assert sum(row["role"] == "retrained" for row in result["tables"][0]["rows"]) == 1


def test_settings_of_the_engine_reach_the_model_of_an_experiment(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = "--model trained.safetensors --forget ids.txt --output new.safetensors"
    line = f"unlearn tiny.yaml {files} --method finetune"
    assert main([*line.split(), "--engine.dtype", "float7"]) == 2
    assert "float7" in capsys.readouterr().err
    assert main([*line.split(), "epochs=1", "engine.accumulate=2"]) == 0


def test_search_writes_ids_that_unlearn_reads(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "search tiny.yaml size=4 --model trained.safetensors --output hard.txt"
    assert main(words.split()) == 0
    lines = Path("hard.txt").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) == 4
    assert "hardest to forget" in lines[0]
    words = (
        "unlearn tiny.yaml --model trained.safetensors --forget hard.txt --method npo --output b.safetensors"
    )
    assert main(words.split()) == 0
    assert "npo forgot 4 of 80" in capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("methods", "salun", "bilevel", "svc", "lora", "adamw", "digits"))
    assert main(["list", "scopes", "--json"]) == 0
    (modules,) = [e for e in json.loads(capsys.readouterr().out)["scopes"] if e["name"] == "modules"]
    assert modules["fields"] == [
        {"name": "patterns", "type": "tuple[str, ...]", "default": None, "required": True}
    ]
    assert main(["list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"methods", "suites"}


def test_a_reader_that_goes_away_is_no_error(place: Path) -> None:
    source = Path(sys.modules["expunge"].__path__[0]).parent
    command = f"{sys.executable} -m expunge.cli.main list | head -1"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "methods\n"
    assert done.stderr == ""


def test_a_bug_keeps_its_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("expunge.experiment.check", bug)
    with pytest.raises(ZeroDivisionError):
        main(["validate", "tiny.yaml"])
