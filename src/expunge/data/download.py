"""Published files: found on this machine or downloaded once, and checked either way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from expunge.errors import DataError


def local_folder(name: str) -> Path | None:
    """``$EXPUNGE_DATA/<name>`` where there is such a folder."""
    root = os.environ.get("EXPUNGE_DATA")
    folder = Path(root).expanduser() / name if root else None
    return folder if folder is not None and folder.is_dir() else None


def found_folder(path: Path | str) -> Path:
    """The folder itself, or ``$EXPUNGE_DATA/<path>`` where there is none here.

    Raises:
        DataError: there is neither.
    """
    there = local_folder(str(path))
    if Path(path).is_dir() or there is None:
        there = Path(path)
    if not there.is_dir():
        root = os.environ.get("EXPUNGE_DATA")
        where = f"'{root}', where EXPUNGE_DATA says" if root else "where EXPUNGE_DATA says, which is not set"
        raise DataError(f"there is no folder '{path}' here, nor in {where}. Put it there, or name another.")
    return there


def cache_folder() -> Path:
    """Where what can be had again is kept: ``$EXPUNGE_CACHE``, or ``~/.cache/expunge``."""
    return Path(os.environ.get("EXPUNGE_CACHE") or "~/.cache/expunge").expanduser()


def read_checked(path: Path, sha256: str) -> bytes:
    """The contents of a file.

    Raises:
        DataError: it cannot be read, or its SHA-256 is another.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}. Restore the file.") from None
    _check(contents, sha256, str(path))
    return contents


def cached(name: str, file: str, sha256: str, url: str) -> bytes:
    """A file from the cache folder, downloaded from ``url`` into it the first time.

    Args:
        name: the data set: its folder in the cache, and under ``$EXPUNGE_DATA``.

    Raises:
        DataError: it cannot be downloaded or stored, or its SHA-256 is another.
    """
    import urllib.error
    import urllib.request

    path = cache_folder() / name / file
    if path.is_file():
        return read_checked(path, sha256)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            contents: bytes = answer.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"'{name}' is not on this machine: set EXPUNGE_DATA to a folder that holds {name}/, or connect "
            f"to the network (downloading {url} failed: {reason})."
        ) from None
    _check(contents, sha256, url)
    partial = path.with_name(f".{file}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(contents)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"cannot store '{path}': {error.strerror or error}. Set EXPUNGE_CACHE to a folder that can "
            "be written."
        ) from None
    return contents


def _check(contents: bytes, sha256: str, where: str) -> None:
    found = hashlib.sha256(contents).hexdigest()
    if found != sha256:
        raise DataError(f"'{where}' is damaged: its SHA-256 is {found[:12]}…, expected {sha256[:12]}….")
