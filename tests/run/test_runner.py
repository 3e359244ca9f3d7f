"""A run comes to the same result however often it is interrupted, and computes only what it must."""

from __future__ import annotations

import fcntl
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import RunError
from expunge.evaluation.report import Report
from expunge.experiment import Experiment, parse, read
from expunge.run_log import EVENTS
from expunge.runner import RESULT, execute, without_timings
from expunge.training.checkpoint import save_weights
from expunge.training.session import Event

TINY = {
    "name": "tiny",
    "data": {"kind": "blobs", "size": 80, "test_size": 40},
    "model": {"kind": "mlp", "inputs": 2, "outputs": 4, "hidden": [8]},
    "task": {"kind": "classification", "classes": 4},
    "train": {"epochs": 2, "batch_size": 32},
    "forget": {"random": {"kind": "random_set", "size": 8}, "hardest": {"kind": "bilevel", "size": 8}},
    "methods": {"finetune": {"epochs": 1}, "grad_ascent": {"epochs": 1}},
    "engine": {"device": "cpu"},
}


@dataclass
class Listener:
    """Remembers what happened; raises KeyboardInterrupt at one event, as Ctrl-C does anywhere."""

    stop_at: int | None = None
    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) == self.stop_at:
            raise KeyboardInterrupt

    def computed(self) -> list[str]:
        """Names of the pieces that were not found in the store."""
        steps = [event.values for event in self.events if event.what == "run" and event.kind == "step"]
        return [name for values in steps for name, seconds in values.items() if seconds]


def tiny(**changes: Any) -> Experiment:
    return parse({**TINY, **changes})


def run(directory: Path, experiment: Experiment | None = None, listener: Listener | None = None) -> Any:
    execute(experiment or tiny(), directory, (listener or Listener(),))
    return without_timings(json.loads((directory / RESULT).read_text()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Listener]:
    directory, listener = tmp_path_factory.mktemp("finished"), Listener()
    return directory, run(directory, listener=listener), listener


@pytest.fixture
def copy(finished: tuple[Path, dict[str, Any], Listener], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_two_fresh_runs_are_equal(finished: Any, tmp_path: Path) -> None:
    assert run(tmp_path / "again") == finished[1]


def test_everything_is_there(finished: Any) -> None:
    directory, result, listener = finished
    assert {path.name for path in directory.iterdir()} == {
        "experiment.yaml", "events.jsonl", "result.json", "report.html", "table.csv", "card.md", "store",
    }  # fmt: skip
    names = [row["name"] for row in result["tables"][0]["rows"]]
    assert names == ["original", "retrained 1", "retrained 2", "retrained 3", "finetune", "grad_ascent"]
    steps = [event for event in listener.events if event.what == "run" and event.kind == "step"]
    assert [event.index for event in steps] == list(range(1, steps[-1].total + 1))


def test_the_written_experiment_is_the_same_experiment(finished: Any, tmp_path: Path) -> None:
    assert run(tmp_path / "again", read(finished[0] / "experiment.yaml")) == finished[1]


def test_a_finished_run_computes_nothing(copy: Path, finished: Any) -> None:
    listener = Listener()
    assert run(copy, listener=listener) == finished[1]
    assert listener.computed() == []


@pytest.mark.parametrize("piece", ["original", "search_hardest", "random_finetune", "random_row_finetune"])
def test_a_deleted_piece_alone_is_computed_again(piece: str, copy: Path, finished: Any) -> None:
    (place,) = (copy / "store").glob(f"{piece}-*")
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    listener = Listener()
    assert run(copy, listener=listener) == finished[1]
    assert [name.replace(" ", "_") for name in listener.computed()] == [piece]


def test_a_changed_method_alone_is_computed_again(copy: Path, finished: Any) -> None:
    methods = {**TINY["methods"], "grad_ascent": {"epochs": 2}}
    listener = Listener()
    run(copy, tiny(methods=methods), listener)
    assert listener.computed() == [
        "random grad_ascent", "random row grad_ascent", "hardest grad_ascent", "hardest row grad_ascent",
    ]  # fmt: skip


def test_a_changed_seed_computes_everything_again(copy: Path) -> None:
    listener = Listener()
    run(copy, tiny(seed=1), listener)
    steps = [event for event in listener.events if event.what == "run" and event.kind == "step"]
    assert len(listener.computed()) == len(steps)


def test_interrupted_anywhere_and_continued_is_the_same(finished: Any, tmp_path: Path) -> None:
    _, result, uninterrupted = finished
    moments = torch.linspace(2, len(uninterrupted.events) - 1, 6).long().tolist()
    for moment in moments:
        directory = tmp_path / str(moment)
        with pytest.raises(KeyboardInterrupt):
            run(directory, listener=Listener(stop_at=moment))
        assert not (directory / RESULT).exists()
        assert run(directory) == result, f"interrupted at event {moment}"


def test_interrupted_again_and_again(finished: Any, tmp_path: Path) -> None:
    for moment in (5, 40, 80):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, listener=Listener(stop_at=moment))
    assert run(tmp_path) == finished[1]


def test_a_failing_method_is_a_row_and_the_others_are_computed(tmp_path: Path) -> None:
    rate = {"kind": "sgd", "lr": 1e30}
    result = run(tmp_path, tiny(methods={"grad_ascent": {"optim": rate}, "finetune": None}))
    rows = {row["name"]: row for row in result["tables"][0]["rows"]}
    assert "learning rate" in rows["grad_ascent"]["error"]
    assert rows["grad_ascent"]["scores"] == []
    assert rows["finetune"]["error"] is None
    assert rows["finetune"]["scores"]
    again = Listener()
    assert run(tmp_path, tiny(methods={"grad_ascent": {"optim": rate}, "finetune": None}), again) == result
    assert again.computed() == []


def test_given_weights_are_the_original(finished: Any, tmp_path: Path) -> None:
    (trained,) = (finished[0] / "store").glob("original-*/model.safetensors")
    listener = Listener()
    execute(tiny(original=str(trained)), tmp_path, (listener,))
    assert "original" not in [event.what for event in listener.events if event.kind == "started"]


def test_changed_weights_are_another_original(finished: Any, tmp_path: Path) -> None:
    weights, experiment = (
        tmp_path / "weights.safetensors",
        tiny(original=str(tmp_path / "weights.safetensors")),
    )
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_weights(experiment.model(), weights)
        listener = Listener()
        run(tmp_path / "run", experiment, listener)
        assert {"original", "search hardest", "random finetune", "random row original"} <= set(
            listener.computed()
        )


def test_changed_ids_are_another_forget_set(tmp_path: Path) -> None:
    ids, experiment = tmp_path / "ids.txt", tiny(forget={"given": {"path": str(tmp_path / "ids.txt")}})
    for text, size in (("1\n2\n", 2), ("1\n2\n3\n", 3)):
        ids.write_text(text)
        assert run(tmp_path / "run", experiment)["tables"][0]["size"] == size


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / EVENTS).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another run is working"):
            run(tmp_path)
    run(tmp_path)


def test_the_result_is_read_back(finished: Any) -> None:
    report = Report.read(finished[0] / RESULT)
    assert without_timings(json.loads(json.dumps(report.to_json()))) == finished[1]


def test_lost_weights_are_said(copy: Path) -> None:
    (place,) = (copy / "store").glob("original-*")
    (place / "model.safetensors").unlink()
    with pytest.raises(RunError, match="original"):
        run(copy)
