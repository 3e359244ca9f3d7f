"""Which examples to forget: random ones, a class, and the hardest."""

from expunge.searches.base import Found, Search, searches

__all__ = ["Found", "Search", "searches"]
