"""Seeds: one number in, everything repeatable, nothing of the caller's touched."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *names: object) -> int:
    """A seed of its own for each purpose: ``derive(0, "train")``, ``derive(0, "retrain", 1)``.

    The first 63 bits of SHA-256 of the seed and the names, so it depends on nothing else.
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator seeded with ``derive(seed, *names)``."""
    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds python, numpy and torch inside the block and restores the caller's state after it.

    Dropout and layers' initialisation draw from torch's global generator; this keeps two runs with
    the same seed equal and leaves the caller's generators where they were.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
