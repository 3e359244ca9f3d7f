"""Several processes come to what one comes to, and what goes wrong in one of them is said."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.run.test_runner import Listener, run, tiny

from expunge.errors import ConfigError, ExpungeError, RunError
from expunge.runner import execute
from expunge.store import Store
from expunge.workers import Tell, Work, spread


def writing(folder: Path, tell: Tell) -> Work:
    """Tasks are names of files; some are special."""

    def work(name: str) -> None:
        if name == "mistaken":
            raise ExpungeError("'mistaken' is no name.")
        if name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "broken":
            raise ValueError("a fault of the program itself")
        if name == "long":
            time.sleep(600)
        (folder / name).write_text(f"{torch.get_num_threads()} {sorted(os.listdir(folder))}")
        tell(name)

    return work


def spread_to(folder: Path, stages: list[list[str]], jobs: int = 2) -> list[Any]:
    heard: list[Any] = []
    spread(partial(writing, folder), stages, jobs, heard.append)
    return heard


def test_every_task_is_done_once_and_a_stage_waits_for_the_one_before(tmp_path: Path) -> None:
    heard = spread_to(tmp_path, [["a", "b", "c"], ["d"]])
    assert sorted(heard) == ["a", "b", "c", "d"]
    assert heard[-1] == "d"
    assert (tmp_path / "d").read_text().endswith("['a', 'b', 'c']")
    each = max(1, torch.get_num_threads() // 2)
    assert {(tmp_path / name).read_text().split()[0] for name in "abcd"} == {str(each)}


def test_a_mistake_is_said_and_the_others_are_stopped(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(RunError, match="'mistaken' is no name"):
        spread_to(tmp_path, [["long", "mistaken"]])
    assert time.monotonic() - start < 300  # not the ten minutes of the other


def test_a_process_that_is_killed_is_no_silent_loss(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ended by itself \(-9\), for want of memory.*fewer --jobs"):
        spread_to(tmp_path, [["a", "killed"]])
    with pytest.raises(RunError, match=r"ended by itself \(1\); its error stands above"):
        spread_to(tmp_path, [["a", "broken"]])


def test_two_processes_come_to_the_same_result(tmp_path: Path) -> None:
    listeners = Listener(), Listener()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run(tmp_path / "alone", listener=listeners[0])
        execute(tiny(), tmp_path / "together", (listeners[1],), jobs=2)
    finally:
        torch.set_num_threads(threads)
    again = Listener()
    assert run(tmp_path / "together", listener=again) == alone
    assert again.computed() == []  # all of it was there already
    assert sorted(listeners[0].computed()) == sorted(listeners[1].computed())  # and made once


def test_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        execute(tiny(), tmp_path, jobs=0)


def test_two_that_make_the_same_piece_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)

    def slow() -> dict[str, int]:
        assert first.value("a", "k", lambda: {"x": 1}) == {"x": 1}
        (tmp_path / ".other.1.partial").mkdir()  # somebody is writing
        Store(tmp_path)
        assert (tmp_path / ".other.1.partial").exists()
        return {"x": 1}

    assert second.value("a", "k", slow) == {"x": 1}
    second.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["a-k"]
