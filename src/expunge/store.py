"""Results of the pieces of a run, kept by what they depend on.

A piece is finished entirely or not there: it is written into a folder of its own that gets its name
in one atomic step. A run that was killed continues with the first piece that is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge import config
from expunge.errors import CheckpointError, RunError
from expunge.evaluation.evidence import Compute, Keep, Tensors
from expunge.provenance import versions
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.session import Session

VALUE, MODEL, TENSORS = "value.json", "model.safetensors", "tensors.safetensors"


def key_of(*parts: object) -> str:
    """The first 16 hexadecimal digits of SHA-256 of JSON-serialisable parts."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def facts(value: object) -> list[Any]:
    """What a configuration says, and SHA-256 of the contents of every file that it names."""
    return [config.dump(value), list(_files(value))]


def _files(value: object) -> Iterator[str]:
    if isinstance(value, Path) and value.is_file():
        with value.open("rb") as file:
            yield hashlib.file_digest(file, "sha256").hexdigest()
    elif dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from _files(getattr(value, item.name))
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from _files(element)


class Store:
    """Finished pieces in a folder.

    Args:
        folder: created if it is not there.

    Raises:
        RunError: it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".writable.{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise RunError(
                f"cannot write to '{folder}': {error.strerror}. Choose another with --directory."
            ) from None

    def tidy(self) -> None:
        """Removes what was being written when a run was killed; only where nobody else is writing."""
        for leftover in self.folder.glob(".*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)

    def value(self, name: str, key: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The JSON value of a piece, computed if it is not there yet."""
        return self._read(self._piece(name, key, lambda: (compute(), None)))

    def model(
        self,
        name: str,
        key: str,
        build: Callable[[], nn.Module],
        compute: Callable[[], tuple[Mapping[str, Any], nn.Module | None]],
    ) -> tuple[dict[str, Any], nn.Module | None]:
        """The value and the model of a piece; ``build`` makes the network that weights are put into.

        The model is read from its file also when it was computed just now, so that an interrupted run
        goes on with exactly what an uninterrupted one has. None where ``compute`` gave none.
        """
        place = self._piece(name, key, compute)
        value = self._read(place)
        if not (place / MODEL).exists():
            return value, None
        model = build()
        try:
            load_weights(model, place / MODEL)
        except CheckpointError as error:
            raise RunError(
                f"a piece of the run is damaged: {error} Delete '{place}' and run again."
            ) from None
        return value, model.eval()

    def weights(self, name: str, key: str) -> Path:
        """The file of a finished model."""
        return self._place(name, key) / MODEL

    def tensors(
        self, name: str, key: str, compute: Callable[[], tuple[Mapping[str, Any], Mapping[str, Tensor]]]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The value and the named tensors of a piece, read from their file likewise."""
        place = self._piece(name, key, compute)
        try:
            return self._read(place), load_file(place / TENSORS)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"a piece of the run is damaged: {error}. Delete '{place}' and run again."
            ) from None

    def has(self, name: str, key: str) -> bool:
        """Whether a piece is finished."""
        return (self._place(name, key) / VALUE).exists()

    def _place(self, name: str, key: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        return self.folder / f"{safe}-{key}"

    def _piece(
        self,
        name: str,
        key: str,
        compute: Callable[[], tuple[Mapping[str, Any], nn.Module | Mapping[str, Tensor] | None]],
    ) -> Path:
        """The folder of a finished piece, which is computed if it is not there yet."""
        place = self._place(name, key)
        if (place / VALUE).exists():
            return place
        value, model = compute()
        partial = self.folder / f".{place.name}.{os.getpid()}.partial"
        try:
            partial.mkdir()
            if isinstance(model, nn.Module):
                save_weights(model, partial / MODEL)
            elif model is not None:
                save_file({k: v.contiguous() for k, v in model.items()}, partial / TENSORS)
            write_text(partial / VALUE, json.dumps(value))
            os.replace(partial, place)
        except OSError as error:
            if (place / VALUE).exists():  # another process has made the same in the meantime
                return place
            raise RunError(
                f"cannot write '{place}': {error.strerror}. What was finished before is kept; "
                "make room and run the same command again."
            ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return place

    def _read(self, place: Path) -> dict[str, Any]:
        try:
            value = json.loads((place / VALUE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"'{place}' is damaged ({type(error).__name__}). Delete that folder and run again."
            ) from None
        if not isinstance(value, dict):
            raise RunError(f"'{place}' is damaged. Delete that folder and run again.")
        return value


def keeper(cache: str | Path | None, session: Session) -> Keep | None:
    """Keeps what metrics train for themselves in a folder, by all that it depends on; None without one."""
    if cache is None:
        return None
    store, common = Store(Path(cache)), [config.identity(session.engine), session.seed, versions()]

    def keep(name: str, depends: tuple[Any, ...], compute: Compute) -> Tensors:
        return store.tensors(name, key_of(common, *depends), compute)[1]

    return keep


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, and has it on disk before it returns.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
