"""Divergences between categorical distributions given by logits, per example and in nats."""

from __future__ import annotations

import torch
from torch import Tensor


def kl(reference: Tensor, outputs: Tensor, temperature: float = 1.0) -> Tensor:
    """``Σ_c p_c (log p_c − log q_c)`` over the last axis, ``p, q = softmax(logits / T)``.

    Computed in float32 and summed over classes; never divided by their number.
    """
    log_p = torch.log_softmax(reference.float() / temperature, dim=-1)
    log_q = torch.log_softmax(outputs.float() / temperature, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """``½ KL(p ‖ m) + ½ KL(q ‖ m)`` with ``m = (p + q) / 2`` over the last axis; in [0, ln 2].

    ``log m`` is a log-sum-exp, so that a probability of zero gives no infinity.
    """
    log_p = torch.log_softmax(first.float(), dim=-1)
    log_q = torch.log_softmax(second.float(), dim=-1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    p, q = log_p.exp(), log_q.exp()
    return (0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1)).clamp_min(0.0)
