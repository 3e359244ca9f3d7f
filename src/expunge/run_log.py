"""What a run writes down of its events while it works."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from expunge.errors import RunError
from expunge.training.session import Event

EVENTS = "events.jsonl"


class RunLog:
    """``events.jsonl``: one line for each event but single steps. Also keeps others out."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.file = (directory / EVENTS).open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"cannot write to '{directory}': {error.strerror}. Choose another with --directory."
            ) from None
        self._lock(directory)

    def __call__(self, event: Event) -> None:
        if event.kind == "step" and event.what != "run":
            return
        line = {
            "time": round(time.time(), 3),
            "kind": event.kind,
            "what": event.what,
            "index": event.index,
            "total": event.total,
            "values": dict(event.values),
        }
        try:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        except OSError as error:
            raise RunError(
                f"cannot write '{self.file.name}': {error.strerror}. What was finished before is kept; "
                "make room and run the same command again."
            ) from None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was said when it was written
            self.file.close()

    def _lock(self, directory: Path) -> None:
        try:
            import fcntl
        except ImportError:  # no such lock on this system; two runs in one directory are the user's care
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise RunError(
                f"another run is working in '{directory}'. Wait for it or choose another with --directory."
            ) from None
