"""``expunge search``: index files, pictures, searches that train, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from expunge import experiment
from expunge.cli.main import main
from expunge.searches import SearchResult
from expunge.training.checkpoint import save_weights
from expunge.training.networks import MLP

EXPERIMENT = {
    "name": "tiny",
    "data": {"kind": "blobs", "size": 60, "test_size": 30},
    "model": {"kind": "mlp", "inputs": 2, "outputs": 4, "hidden": [8]},
    "task": {"kind": "classification", "classes": 4},
    "train": {"epochs": 2, "batch_size": 32},
    "forget": {"random": {"kind": "random_set", "size": 8}},
    "methods": {},
    "engine": {"device": "cpu"},
}
DIGITS = {
    "data": "digits",
    "model": {"kind": "mlp", "inputs": 64, "outputs": 10, "hidden": [8]},
    "task": {"kind": "classification", "classes": 10},
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    Path("digits.yaml").write_text(yaml.safe_dump({**EXPERIMENT, **DIGITS}))
    torch.manual_seed(0)
    save_weights(MLP(2, (8,), 4), "tiny.safetensors")
    save_weights(MLP(64, (8,), 10), "digits.safetensors")
    return tmp_path


def search(source: str, words: str) -> int:
    return main(f"search {source}.yaml --model {source}.safetensors {words}".split())


def test_an_index_file_names_search_and_data_and_unlearn_reads_it(capsys) -> None:
    assert search("tiny", "size=4 --search greedy --output set.json") == 0
    assert "changes the model least" in capsys.readouterr().out
    found = SearchResult.load("set.json")
    assert len(found) == 4
    assert found.search["kind"] == "greedy"
    assert found.fingerprint == experiment.read("tiny.yaml").sourced.train.fingerprint()
    unlearn = (
        "unlearn {}.yaml --model {}.safetensors --forget set.json --method grad_ascent --output a.safetensors"
    )
    assert main(unlearn.format("tiny", "tiny").split()) == 0
    assert "forgot 4 of 60" in capsys.readouterr().out
    assert main(unlearn.format("digits", "digits").split()) == 2
    assert "chosen from other training data" in capsys.readouterr().err


def test_a_list_of_ids_has_the_same_ids_as_the_index_file() -> None:
    assert search("tiny", "size=4 --search moderate --output set.json") == 0
    assert search("tiny", "size=4 --search moderate --output set.txt") == 0
    lines = [line for line in Path("set.txt").read_text().splitlines() if not line.startswith("#")]
    assert [int(line) for line in lines] == json.loads(Path("set.json").read_text())["ids"]


def test_searches_that_train_get_the_recipe_of_the_experiment(capsys) -> None:
    for name in ("el2n", "grand", "memorisation"):
        assert search("tiny", f"size=1 unit=class models=2 --search {name} --output {name}.json") == 0
        assert SearchResult.load(f"{name}.json").unit == "class"
    capsys.readouterr()


def test_what_was_found_is_drawn() -> None:
    assert search("digits", "size=30 --search loss_ranking --output new/set.json --draw new/set.png") == 0
    assert Path("new/set.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("words", "said"), [
    ("size=60 --search greedy", "leaves nothing to keep"),
    ("unit=subject --search memorisation", "no column 'subjects'"),
    ("unit=clas --search el2n", "unit"),
    ("models=3 --search memorisation", "fraction: every example is to be in 3"),
    ("size=4 --search greedy --draw set.png", "no images"),
])  # fmt: skip
def test_what_cannot_be_searched_is_said_in_one_line_and_nothing_written(
    words: str, said: str, capsys
) -> None:
    assert search("tiny", f"{words} --output set.json") == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not list(Path().glob("set.*"))


def test_an_experiment_may_have_forget_sets_whose_search_trains() -> None:
    forget = {
        "early": {"kind": "grand", "models": 2, "epochs": 1, "size": 5},
        "late": {"kind": "grand", "models": 2, "epochs": 1, "size": 5, "mode": "easiest"},
    }
    settings = {**EXPERIMENT, "forget": forget, "retrained": 1, "metrics": [{"kind": "accuracy"}]}
    experiment.check(experiment.parse(settings))
    Path("sets.yaml").write_text(yaml.safe_dump(settings))
    assert main(["run", "sets.yaml"]) == 0
    names = [path.name for path in Path("runs/tiny/store").iterdir()]
    assert sum("prepare" in name and "grand" in name for name in names) == 1  # one preparation for both sets
