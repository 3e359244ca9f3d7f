"""One line that names the mistake, exit code 2, no traceback: for everything that can go wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _neighbour(name: str) -> ModuleType:
    """A module beside this file; it also runs as a script."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


bad_input = _neighbour("bad_input")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad_input.furnish(tmp_path_factory.mktemp("workplace"))


@pytest.mark.parametrize("case", bad_input.CASES, ids=lambda case: case.title)
def test_one_line_that_names_it(case: object, folder: Path) -> None:
    outcome = case.run(folder)
    assert list(case.complaints(outcome)) == [], outcome.stderr
