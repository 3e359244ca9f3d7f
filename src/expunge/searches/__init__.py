"""Which examples to forget: random ones, a class, and the hardest."""

from expunge.searches.base import Search, searches
from expunge.searches.result import SearchResult

__all__ = ["Search", "SearchResult", "searches"]
