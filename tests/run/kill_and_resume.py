"""Kills a run again and again, and compares what it comes to with a run that was left alone.

``python tests/run/kill_and_resume.py digits --kills 5 --seed 0``; exit code 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from expunge.runner import RESULT, without_timings

HEAD_START = 1.0
"""Seconds before a kill; most of them go into importing torch."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", help="a packaged suite or a YAML file")
    parser.add_argument("settings", nargs="*", help="key=value overrides")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "expunge.cli.main",
        "run",
        options.suite,
        *options.settings,
        "--directory",
    ]
    with tempfile.TemporaryDirectory() as name:
        alone, killed = Path(name) / "alone", Path(name) / "killed"
        start = time.monotonic()
        finish([*command, str(alone)])
        length = time.monotonic() - start
        print(f"left alone: {length:.1f} s")
        draws = random.Random(options.seed)
        for number in range(options.kills):
            # Finished pieces are found again; all attempts together stay below one whole run.
            moment = HEAD_START + draws.uniform(0, (length - HEAD_START) / options.kills)
            if not kill([*command, str(killed)], moment):
                print(f"attempt {number + 1} had finished before it was killed; choose another --seed")
                return 1
            print(f"killed after {moment:.1f} s: {pieces(killed)} pieces are there")
        finish([*command, str(killed)])
        equal = result(alone) == result(killed)
    print("equal" if equal else "DIFFERENT")
    return 0 if equal else 1


def finish(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(command: list[str], after: float) -> bool:
    """Starts the command and kills it outright after so many seconds; False if it had finished."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def pieces(directory: Path) -> int:
    return sum(1 for _ in (directory / "store").glob("[!.]*"))


def result(directory: Path) -> dict[str, object]:
    return without_timings(json.loads((directory / RESULT).read_text()))


if __name__ == "__main__":
    sys.exit(main())
