"""Methods whose result is a model that never saw the forget set."""
