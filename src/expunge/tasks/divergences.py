"""Categorical distributions given by logits: divergences per example and in nats, and draws."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(reference: Tensor, outputs: Tensor, temperature: float = 1.0) -> Tensor:
    """``Σ_c p_c (log p_c − log q_c)`` over the last axis, ``p, q = softmax(logits / T)``.

    Computed in float32 and summed over classes; never divided by their number.
    """
    log_p = torch.log_softmax(reference.float() / temperature, dim=-1)
    log_q = torch.log_softmax(outputs.float() / temperature, dim=-1)
    return _positive((log_p.exp() * (log_p - log_q)).sum(-1))


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """``½ KL(p ‖ m) + ½ KL(q ‖ m)`` with ``m = (p + q) / 2`` over the last axis; in [0, ln 2].

    With ``d = log q − log p``, ``log(p / m) = log 2 − softplus(d)``: a probability of zero gives no
    infinity and equal arguments give exactly 0.
    """
    log_p = torch.log_softmax(first.float(), dim=-1)
    log_q = torch.log_softmax(second.float(), dim=-1)
    gap = log_q - log_p
    first_part = log_p.exp() * (math.log(2) - F.softplus(gap))
    second_part = log_q.exp() * (math.log(2) - F.softplus(-gap))
    return _positive(0.5 * (first_part + second_part).sum(-1))


def _positive(value: Tensor) -> Tensor:
    """0 where rounding made a divergence negative, with the gradient that it has there."""
    return value + (-value).clamp_min(0.0).detach()


def drawn(outputs: Tensor, generator: torch.Generator | None) -> Tensor:
    """One class from each softmax over the last axis, on the CPU; ``(…, C)`` to ``(…,)``."""
    chances = torch.softmax(outputs.detach().float(), dim=-1).cpu()
    rows = torch.multinomial(chances.flatten(0, -2), 1, generator=generator)
    return rows.view(chances.shape[:-1])
