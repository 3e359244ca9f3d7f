"""Engines, the one optimisation loop, recipes, and small networks."""
