"""Machine unlearning that can be verified.

``train``, ``unlearn``, ``evaluate``, ``audit``, ``search`` and ``run`` are the verbs; everything is
imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge import data, methods, tasks
    from expunge.api import compare, evaluate, run, search, shadows, train, unlearn
    from expunge.data import ArrayData, Split, StreamData
    from expunge.evaluation.report import Report
    from expunge.foreign import audit
    from expunge.saved import load, save
    from expunge.training.engine import Engine
    from expunge.training.recipe import Recipe, Training

__version__ = "0.1.0"

_VERBS = ("compare", "evaluate", "run", "search", "shadows", "train", "unlearn")
_PLACES = {
    **dict.fromkeys(_VERBS, "expunge.api"),
    **dict.fromkeys(("ArrayData", "Split", "StreamData"), "expunge.data"),
    **dict.fromkeys(("Recipe", "Training"), "expunge.training.recipe"),
    "Engine": "expunge.training.engine",
    "Report": "expunge.evaluation.report",
    "audit": "expunge.foreign",
    **dict.fromkeys(("load", "save"), "expunge.saved"),
}
_MODULES = ("data", "methods", "tasks")

__all__ = ["ArrayData", "Engine", "Recipe", "Report", "Split", "StreamData", "Training", "audit",
           "compare", "data", "evaluate", "load", "methods", "run", "save", "search", "shadows", "tasks",
           "train", "unlearn"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"expunge.{name}")
    raise AttributeError(f"module 'expunge' has no attribute '{name}'")
