"""Guards: the weights stay, the inference changes."""
