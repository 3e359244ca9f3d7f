"""Classifiers of what an image shows, for the tests of the command: fixed, and right about nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def reader(domain: str, concepts: Sequence[str]) -> nn.Module:
    """Logits that are linear in the pixels, drawn once for each domain."""
    torch.manual_seed(len(domain))
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(3 * 16, len(concepts)))
