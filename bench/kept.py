"""A run's results as a JSON file: what was measured, with seed, hardware and versions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from expunge.provenance import hardware, versions


def keep(output: Path, seed: int, measure: Callable[[], dict[str, Any]]) -> None:
    """Measures, and writes what came of it."""
    began = time.process_time()
    found = measure()
    report = {
        "seed": seed,
        "device": hardware(torch.device("cpu")),
        "CPU seconds of the last call": round(time.process_time() - began, 1),
        "versions": versions(),
        **found,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    output.write_text(text + "\n", encoding="utf-8")
