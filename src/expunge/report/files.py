"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from expunge.errors import RunError


def write_whole(path: Path, text: str) -> Path:
    """Writes beside the file first, so that a reader never sees half of it.

    Raises:
        RunError: the file cannot be written there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunError(f"cannot write '{path}': {error.strerror}. Choose another place.") from None
    return path
