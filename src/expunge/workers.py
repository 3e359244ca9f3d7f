"""Independent pieces of work in several processes at once."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from expunge.errors import ExpungeError, RunError

Tell = Callable[[Any], None]
"""Sends something that can be pickled to the process that waits."""
Work = Callable[[Any], None]
"""Does one task."""
Prepare = Callable[[Tell], Work]
"""What a process does first, once: makes ready, and gives what does its tasks."""

WAIT = 0.2
"""Seconds between two looks at whether every process lives."""

TOLD, FAILED, DONE = "told", "failed", "done"


def spread(prepare: Prepare, stages: Sequence[Sequence[Any]], jobs: int, tell: Tell) -> None:
    """Does every task of a stage, then those of the next, in ``jobs`` processes that take one after another.

    Each process has an equal share of this one's threads, at least one. Nothing is returned: tasks leave
    what they make in files. Those of one stage must not depend on each other.

    Args:
        prepare, stages: what can be pickled.
        tell: is called here with whatever a task told.

    Raises:
        RunError: a task failed, or its process was killed; the others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    waiting, said = context.Queue(), context.Queue()
    threads = max(1, torch.get_num_threads() // jobs)
    processes = [
        context.Process(target=_within, args=(prepare, threads, waiting, said))
        for _ in range(min(jobs, max(map(len, stages))))
    ]
    try:
        for process in processes:
            process.start()
        for tasks in stages:
            for task in tasks:
                waiting.put(task)
            left = len(tasks)
            while left:
                left -= _heard(said, tell, processes)
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _heard(said: Any, tell: Tell, processes: Sequence[BaseProcess]) -> int:
    """Passes on one thing that was said, if any; how many tasks it says are done."""
    try:
        kind, value = said.get(timeout=WAIT)
    except queue.Empty:
        codes = [process.exitcode for process in processes if process.exitcode is not None]
        if codes:
            why = ", for want of memory perhaps" if codes[0] < 0 else "; its error stands above"
            raise RunError(
                f"a process of the run ended by itself ({codes[0]}){why}. What was finished is kept; run the "
                "same command again with fewer --jobs."
            ) from None
        return 0
    if kind == FAILED:
        raise RunError(value)
    if kind == TOLD:
        tell(value)
    return int(kind == DONE)


def _within(prepare: Prepare, threads: int, waiting: Any, said: Any) -> None:
    """In a process of its own: one task after another, until it is stopped."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the business of the process that waits
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def tell(value: Any) -> None:
        said.put((TOLD, value))

    try:
        work = prepare(tell)
        while parent is None or parent.is_alive():
            try:
                task = waiting.get(timeout=WAIT)
            except queue.Empty:
                continue
            work(task)
            said.put((DONE, None))
    except ExpungeError as error:
        said.put((FAILED, str(error)))
