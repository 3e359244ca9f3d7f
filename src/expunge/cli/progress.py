"""How far a command has come: bars on a terminal, a line now and then elsewhere, both on stderr."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

if TYPE_CHECKING:
    from expunge.training.session import Event

QUIET = 2.0
"""Seconds between two lines where there is no terminal and the pieces are not counted."""

_DOING = {
    **dict.fromkeys(("original", "retrain", "shadow", "judge of", "clip pair"), "training"),
    "relearn": "evaluating",
    "images": "drawing",
    "bilevel": "searching",
}


class Progress:
    """A listener of a session; open it with ``with``."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = _Live(self.stream) if self.stream.isatty() else None
        self.pieces: _Pieces | None = None
        self.said = time.perf_counter()

    def __enter__(self) -> Progress:
        if self.live is not None:
            self.live.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        if self.live is not None:
            self.live.bars.stop()

    def __call__(self, event: Event) -> None:
        if event.what == "run":
            if event.kind == "started":
                self.pieces = _Pieces(event.total)
            if event.kind == "step" and self.pieces is not None:
                self._piece(event, self.pieces)
        elif self.live is not None:
            self.live.current(event)
        elif self.pieces is None and event.kind == "finished" and time.perf_counter() - self.said > QUIET:
            self._line(f"{doing(event)}: done")

    def _piece(self, event: Event, pieces: _Pieces) -> None:
        ((name, seconds),) = event.values.items()
        pieces.add(seconds)
        if self.live is not None:
            self.live.overall(event, pieces.left())
        elif seconds:
            self._line(f"[{event.index}/{event.total}] {name}: {_clock(seconds)}{pieces.left()}")

    def _line(self, text: str) -> None:
        self.said = time.perf_counter()
        with suppress(OSError):  # nobody reads it any more; that is no reason to stop the work
            print(text, file=self.stream, flush=True)


class _Pieces:
    """Estimates the time left from the pieces that were not found in the store."""

    def __init__(self, total: int) -> None:
        self.todo, self.computed, self.start = total, 0, time.perf_counter()

    def add(self, seconds: float) -> None:
        self.todo -= 1
        self.computed += seconds > 0

    def left(self) -> str:
        passed = time.perf_counter() - self.start  # not the sum of the pieces: several are made at once
        seconds = self.todo * passed / self.computed if self.computed else 0.0
        return f", about {_clock(seconds)} left" if seconds >= 1 else ""


class _Live:
    """Two bars: the pieces of the run, and the steps of the current one."""

    def __init__(self, stream: TextIO) -> None:
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(file=stream, highlight=False),
            transient=True,
        )
        self.run = self.bars.add_task("pieces", total=None, visible=False, note="")
        self.piece = self.bars.add_task("preparing", total=None, note="")

    def overall(self, event: Event, left: str) -> None:
        note = left.removeprefix(", ")
        self.bars.update(self.run, completed=event.index, total=event.total, visible=True, note=note)

    def current(self, event: Event) -> None:
        total = event.total or None
        if event.kind == "evaluated" and total:  # the mean loss of an epoch: the bar already moves
            return
        self.bars.update(self.piece, description=doing(event), completed=event.index, total=total)


def doing(event: Event) -> str:
    """What an event is part of, in words: ``training retrained 1``, ``evaluating salun: forget``."""
    verb = "unlearning"
    if event.kind == "evaluated" and not event.total:
        verb = "evaluating"
    else:
        verb = next((word for start, word in _DOING.items() if event.what.startswith(start)), verb)
    return f"{verb} {event.what}"


def _clock(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min``, ``1 h 20 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
