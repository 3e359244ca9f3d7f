"""Attacks: metrics whose value is what an adversary gets."""
