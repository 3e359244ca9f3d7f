"""What the tests of the command line share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def forgotten_module() -> Iterator[None]:
    """``mine.py`` is another file in every folder; Python would go on with the one imported first."""
    sys.modules.pop("mine", None)
    yield
    sys.modules.pop("mine", None)
