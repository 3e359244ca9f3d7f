"""Views of made-up logits, for objectives that look at every label."""

from types import SimpleNamespace

import torch

from expunge.tasks import CausalLM

V = 120
TASK = CausalLM(V)


def view(logits, labels, original=None):
    """Logits ``(N, T, V)`` that a language model said of ``labels``, and what its original said."""
    batch = {"ids": torch.arange(len(labels)), "labels": labels}
    said = SimpleNamespace(said=logits, batch=batch, original=original)
    said.log_likelihood = TASK.log_likelihood(logits, batch)
    said.loss = TASK.loss(logits, batch)
    return said


def drawn(seed=0, n=3, length=7, scale=1.0):
    """Random logits, those of an original near them, and labels after prompts of 2 to 4 tokens."""
    draws = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, length, V, generator=draws)
    original = logits + 0.3 * torch.randn(n, length, V, generator=draws)
    labels = torch.randint(0, V, (n, length), generator=draws)
    labels[torch.arange(length) < 2 + torch.arange(n)[:, None]] = -100
    return logits.requires_grad_(), labels, original
