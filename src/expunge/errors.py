"""The exceptions a user may meet.

Every message says what is wrong, what was given and what to do. The command line prints them as
one line, without a traceback, and ends with exit code 2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class ExpungeError(Exception):
    """A mistake that the user can mend; its message fits on one line."""


class ConfigError(ExpungeError):
    """A configuration, an argument or a file that cannot be used.

    ``path`` is where in the configuration the mistake is, for example ``methods.salun.optim.lr``.
    """

    def __init__(self, message: str, path: str = "") -> None:
        self.message = message
        self.path = path
        super().__init__(f"{path}: {message}" if path else message)

    def under(self, parent: str) -> ConfigError:
        """The same mistake, seen from the mapping ``parent`` that holds it."""
        path = f"{parent}.{self.path}" if parent and self.path else parent or self.path
        return ConfigError(self.message, path)


class DataError(ExpungeError):
    """Data that cannot be read, or that does not fit the task: shapes, labels, ids, NaN."""


class CheckpointError(ExpungeError):
    """Weights that cannot be read or do not fit the model."""


class Unsupported(ExpungeError):
    """The method, metric or search cannot run on this model or task; nothing was run instead."""


class MissingExtra(ExpungeError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs packages that are not installed. Install them: pip install 'expunge[{extra}]'"
        )


class MissingEvidence(ExpungeError):
    """A metric or method needs something that was not given (a retrained model, a recipe, test data)."""


class RunError(ExpungeError):
    """A run directory cannot be written or does not hold what it should."""


class Diverged(ExpungeError):
    """A loss, a gradient or a weight became NaN or infinite.

    ``what`` was being trained; ``model`` is the last state of it with finite losses, None where none is left.
    """

    def __init__(self, message: str, *, what: str = "", model: Any = None) -> None:
        self.what, self.model = what, model
        super().__init__(message)


class OutOfMemory(ExpungeError):
    """The memory of the machine or of its accelerator is too small for the settings."""


FITS = (
    "Lower batch_size; or set engine.accumulate=4, the same step with a quarter of the activations; or "
    "engine.activation_checkpointing=true, for transformers; or engine.dtype=bfloat16; or train less, with "
    "scope=lora or last_layers."
)

_ASKED = re.compile(r"[Tt]ri?e[dy] to allocate ([\d.]+ ?(?:[KMGT]i?B|bytes))")
_FULL = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def memory_error(error: BaseException) -> OutOfMemory | None:
    """What to say instead of an error of torch or Python about memory; None for any other error."""
    said = " ".join(str(error).split())
    full = isinstance(error, MemoryError) or any(sign in said.lower() for sign in _FULL)
    if not isinstance(error, (MemoryError, RuntimeError)) or not full:
        return None
    asked = _ASKED.search(said)
    wanted = f" (it asked for {asked[1]} more)" if asked else ""
    return OutOfMemory(f"the memory is full{wanted}. {FITS}")


@contextmanager
def fitting_memory() -> Iterator[None]:
    """Errors about memory inside the block, or the decorated function, say which settings would fit.

    Raises:
        OutOfMemory: the memory is full.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        found = memory_error(error)
        if found is None:
            raise
        raise found from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'salun'?"``, or the list of what exists when nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
