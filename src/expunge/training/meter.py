"""Wall-clock time and peak memory of a block."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")
_PERIOD = 0.01  # seconds between two looks at the resident memory


@contextmanager
def metered(device: torch.device) -> Iterator[dict[str, float]]:
    """Measures the block into a dictionary that is filled when the block ends.

    ``seconds`` is wall-clock time. ``memory`` is the peak above the start in MiB: of allocated memory
    on a GPU, of the process's resident memory on a CPU, looked at every 10 ms (so a shorter peak can
    be missed); absent where the system does not tell.
    """
    cost: dict[str, float] = {}
    watch = _Cuda(device) if device.type == "cuda" else _Resident()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        memory = watch.stop()
        cost["seconds"] = time.perf_counter() - start
        if memory is not None:
            cost["memory"] = memory / 2**20


class _Cuda:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        self.start = torch.cuda.memory_allocated(device)

    def stop(self) -> float | None:
        torch.cuda.synchronize(self.device)
        return float(torch.cuda.max_memory_allocated(self.device) - self.start)


class _Resident:
    """A thread that looks at the resident memory of this process."""

    def __init__(self) -> None:
        self.page = os.sysconf("SC_PAGE_SIZE") if _STATM.exists() else 0
        self.done = threading.Event()
        if self.page:
            self.start = self.peak = self._now()
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()

    def stop(self) -> float | None:
        if not self.page:
            return None
        self.done.set()
        self.thread.join()
        return float(max(self.peak, self._now()) - self.start)

    def _now(self) -> int:
        return int(_STATM.read_text().split()[1]) * self.page

    def _watch(self) -> None:
        while not self.done.wait(_PERIOD):
            self.peak = max(self.peak, self._now())
