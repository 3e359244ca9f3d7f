"""Reference models trained on random halves of the data, and what they say of every example."""

from __future__ import annotations


class Shadows:
    """Being written."""
