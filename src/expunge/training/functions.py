"""The user's own functions, by name: ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from expunge.errors import ConfigError, ExpungeError, did_you_mean


def call(function: str, arguments: Mapping[str, Any] | None = None) -> object:
    """What the function or class returns for these keyword arguments.

    Args:
        function: ``"module:function"`` or ``"folder/file.py:function"``; modules in the current
            directory, and those beside the file, can be imported.

    Raises:
        ConfigError: no such file, module or function, arguments it does not take, or an exception in it.
    """
    given = dict(arguments or {})
    name, _, attribute = function.rpartition(":")
    if not name or not attribute:
        raise ConfigError(
            f"expected module:function, for example mymodels:build, got '{function}'.", "function"
        )
    file = Path(name) if name.endswith(".py") else None
    with _importable(os.getcwd(), *([str(file.resolve().parent)] if file else [])):
        found = _attribute(_file(file) if file else _module(name), name, attribute)
        try:
            inspect.signature(found).bind(**given)
        except TypeError as error:
            raise ConfigError(f"'{function}' cannot be called: {error}.", "arguments") from None
        except ValueError:
            pass  # a function written in C has no signature to check
        try:
            return found(**given)
        except ExpungeError:
            raise
        except Exception as error:
            raise ConfigError(f"'{function}' failed: {_said(error)}", "function") from error


def _attribute(module: ModuleType, name: str, attribute: str) -> Callable[..., object]:
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{'file' if name.endswith('.py') else 'module'} '{name}' has no function '{attribute}'."
            f"{did_you_mean(attribute, known)}",
            "function",
        )
    return found  # type: ignore[no-any-return]


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            reason = f"there is no module '{name}' in {os.getcwd()} or among the installed packages."
        else:
            reason = f"module '{name}' needs '{error.name}', which is not installed."
        raise ConfigError(reason, "function") from None
    except Exception as error:
        raise ConfigError(f"module '{name}' cannot be imported: {_said(error)}", "function") from error


def _file(path: Path) -> ModuleType:
    """The module in a file, executed once however often it is named."""
    if not path.is_file():
        raise ConfigError(f"there is no file '{path}'.", "function")
    name = re.sub(r"\W", "_", str(path.resolve()))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of the module look for it there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, ModuleNotFoundError):
            reason = f"file '{path}' needs '{error.name}', which is not installed."
            raise ConfigError(reason, "function") from None
        raise ConfigError(f"file '{path}' cannot be imported: {_said(error)}", "function") from error
    return module


def _said(error: Exception) -> str:
    """``ValueError: shapes differ (net.py, line 12)``."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    known = frames and not isinstance(error, SyntaxError)  # which names its place itself
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if known else ""
    return f"{type(error).__name__}: {text}{where}"


@contextmanager
def _importable(*folders: str) -> Iterator[None]:
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)
