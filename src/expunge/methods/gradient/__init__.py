"""One file is one objective."""
