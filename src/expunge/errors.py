"""The exceptions a user may meet.

Every message says what is wrong, what was given and what to do. The command line prints them as
one line, without a traceback, and ends with exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    """A loss or a weight became NaN or infinite."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'salun'?"``, or the list of what exists when nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
