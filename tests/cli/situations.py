"""Bad luck that has to be staged: damaged pieces, a full disk, another run, an interruption."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import expunge

COMMAND = [sys.executable, "-m", "expunge.cli.main"]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(expunge.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
}


def _run(folder: Path, *words: str) -> tuple[int, str]:
    """``expunge run base.yaml`` with more words, in this process; without its progress."""
    from expunge.cli.main import main

    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        code = main(["run", "base.yaml", *words])
    return code, "".join(line for line in stderr.getvalue().splitlines(True) if not line.startswith("["))


def damaged_value(folder: Path) -> tuple[int, str]:
    _run(folder, "--directory", "damaged_value")
    (piece,) = (folder / "damaged_value" / "store").glob("original-*/value.json")
    piece.write_text('{"cost": {')
    return _run(folder, "--directory", "damaged_value")


def truncated_model(folder: Path) -> tuple[int, str]:
    _run(folder, "--directory", "truncated_model")
    (piece,) = (folder / "truncated_model" / "store").glob("original-*/model.safetensors")
    piece.write_bytes(piece.read_bytes()[:40])
    return _run(folder, "--directory", "truncated_model")


def two_runs(folder: Path) -> tuple[int, str]:
    (folder / "busy").mkdir()
    with (folder / "busy" / "events.jsonl").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return _run(folder, "--directory", "busy")


def full_disk(folder: Path) -> tuple[int, str]:
    """ENOSPC, simulated where the store makes sure that a piece is on the disk."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch("os.fsync", side_effect=full):
        return _run(folder, "--directory", "full_disk")


def full_log(folder: Path) -> tuple[int, str]:
    """ENOSPC from the system itself: the log is ``/dev/full``."""
    (folder / "full_log").mkdir()
    (folder / "full_log" / "events.jsonl").symlink_to("/dev/full")
    return _run(folder, "--directory", "full_log")


def ctrl_c(folder: Path) -> tuple[int, str]:
    return _signalled(folder, signal.SIGINT, "ctrl_c")


def terminated(folder: Path) -> tuple[int, str]:
    return _signalled(folder, signal.SIGTERM, "terminated")


def _signalled(folder: Path, number: signal.Signals, name: str) -> tuple[int, str]:
    """Signals a run of its own process in the middle of its first, endless, training."""
    words = ["run", "base.yaml", "train.epochs=1000000", "--directory", name]
    with start(words, folder) as process:
        wait_for(folder / name / "events.jsonl", '"original"', process)
        process.send_signal(number)
        try:
            _, stderr = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            stderr = "it did not stop within 30 s"
    return process.returncode, stderr


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *words],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=_heed_interrupts,
    )


def _heed_interrupts() -> None:
    """Shells start background jobs, and so the tests in them, deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(file: Path, text: str, process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Returns when the file holds the text, or the process has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and text in file.read_text():
            return
        time.sleep(0.02)
