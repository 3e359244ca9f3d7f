"""What a command says while it works, where there is no terminal."""

from __future__ import annotations

import io
import time

import pytest

from expunge.cli.progress import Progress, doing
from expunge.training.session import Event


def lines(monkeypatch: pytest.MonkeyPatch, *pieces: tuple[str, float, float]) -> list[str]:
    """Of pieces by name, their seconds and the time when they were done, of ten in all."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress(Event("started", "run", 0, 10))
        for k, (name, seconds, done) in enumerate(pieces):
            now[0] = done
            progress(Event("step", "run", k + 1, 10, {name: seconds}))
    return stream.getvalue().splitlines()


def test_what_was_found_is_not_said_and_the_rest_is_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, ("original", 0.0, 0.0), ("row a", 4.0, 4.0), ("row b", 6.0, 10.0)) == [
        "[2/10] row a: 4.0 s, about 32 s left",
        "[3/10] row b: 6.0 s, about 35 s left",
    ]


def test_pieces_that_are_made_side_by_side_take_half_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, ("a", 4.0, 4.0), ("b", 4.0, 4.0))[-1] == "[2/10] b: 4.0 s, about 16 s left"


def test_judges_are_trained_and_methods_unlearn() -> None:
    assert doing(Event("step", "judge of style")) == "training judge of style"
    assert doing(Event("step", "clip pair")) == "training clip pair"
    assert doing(Event("step", "salun")) == "unlearning salun"
