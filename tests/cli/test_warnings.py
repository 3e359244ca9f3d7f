"""What is slow is said in one line on stderr, and done all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from expunge.cli.main import main
from expunge.config import read_yaml
from expunge.training import engine

EXPERIMENT = {
    "name": "tiny",
    "data": {"kind": "blobs", "size": 40, "test_size": 20},
    "model": {"kind": "mlp", "inputs": 2, "outputs": 4, "hidden": [4]},
    "task": {"kind": "classification", "classes": 4},
    "train": {"epochs": 1},
    "forget": {"random": {"kind": "random_set", "size": 8}},
    "methods": {"finetune": {"epochs": 1}},
    "retrained": 1,
    "metrics": [{"kind": "accuracy", "part": "test"}],
    "engine": {"device": "cpu"},
}


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize(("dtype", "units"), [("bfloat16", False), ("bfloat16", True), ("float32", False)])
def test_bfloat16_on_a_cpu_without_it(
    command: str,
    dtype: str,
    units: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "computes_bfloat16", lambda: units)
    Path("tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    assert main([command, "tiny.yaml", f"engine.dtype={dtype}"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    if units or dtype == "float32":
        assert said == []
    else:
        (line,) = said
        assert "no instructions for bfloat16" in line
        assert line.endswith("Set engine.dtype=float32.")
    if command == "run":
        assert read_yaml(Path("runs/tiny/experiment.yaml"))["engine"]["dtype"] == dtype
