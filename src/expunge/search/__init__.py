"""Which examples to forget: random ones, a class, and the hardest."""

from expunge.search.base import Found, Search, searches

__all__ = ["Found", "Search", "searches"]
