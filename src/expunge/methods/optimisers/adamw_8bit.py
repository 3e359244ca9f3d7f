"""AdamW with 8-bit moments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from expunge.errors import MissingExtra
from expunge.training.optim import AdamW, optimisers


@optimisers.register("adamw_8bit")
@dataclass(frozen=True, kw_only=True)
class AdamW8bit(AdamW):
    """AdamW that keeps its two moments in 8 bits a weight, through bitsandbytes: 2 bytes a weight for 8.

    Moments are quantised in blocks with a scale each; those of small tensors stay in 32 bits. It
    runs on a CPU too (bitsandbytes 0.50).

    Raises:
        MissingExtra: bitsandbytes is not installed.
    References: Dettmers et al., 8-bit Optimizers via Block-wise Quantization, ICLR 2022,
        arXiv:2110.02861.
    """

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        if find_spec("bitsandbytes") is None:
            raise MissingExtra("The optimiser 'adamw_8bit'", "quantised")
        kind: Any = import_module("bitsandbytes.optim").AdamW8bit
        found: torch.optim.Optimizer = kind(
            list(parameters), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )
        found.metric = None  # type: ignore[attr-defined]  # its second moments cannot be read as they are
        return found
