"""Where a result comes from."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from expunge import config
from expunge.experiment import Experiment

PACKAGES = ("expunge", "torch", "numpy", "scipy", "scikit-learn", "transformers", "peft", "diffusers")


def versions() -> dict[str, str]:
    """The installed versions of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> str:
    """The processor or GPU in words, with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.get_num_threads()} threads"


def collect(experiment: Experiment, seconds: float) -> dict[str, Any]:
    """Configuration, versions, seed, hardware, fingerprints and time of a run."""
    sourced = experiment.sourced
    return {
        "config": config.dump(experiment),
        "seed": experiment.seed,
        "versions": versions(),
        "hardware": hardware(experiment.engine.torch_device),
        "fingerprints": {"train": sourced.train.fingerprint(), "test": sourced.test.fingerprint()},
        "task": config.dump(experiment.task),
        "score_name": experiment.task.score_name,
        "seconds": seconds,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
