"""One shot on the weights."""
