"""Cross-entropy unlearning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.data.split import Split
from expunge.data.text import IGNORED
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import methods
from expunge.methods.labels import LogitObjective, label_states, mean_over_labels, of_labels
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.token_states import TokenStates
from expunge.training.optim import AdamW, Optim
from expunge.training.step import View


@methods.register("ce_u")
@dataclass(frozen=True, kw_only=True)
class CEU(LogitObjective):
    """Imitates the model itself with the true label left out (CE-U).

    ``min_θ  mean_{i∈D_f} mean_t CE(q_t, p_θ) + λ mean_{i∈D_r} ℓ_i(θ)`` with the target
    ``q_t(v) = p_θ(v) / (1 − p_θ(y_t))`` for ``v ≠ y_t``, ``q_t(y_t) = 0``, through which no gradient goes.
    The gradient for the logits is ``p_y`` at the true label and ``−p_v p_y / (1 − p_y)`` elsewhere: it
    vanishes as the label is forgotten.

    Args:
        skip: tokens at the beginning of an answer that are left alone; a classifier's one label is none
            of them.
        retain_weight: ``λ``; 0 in the paper, which reads the forget set alone.

    Shapes: logits ``(N, C)``, of every labelled token of a language model. Unsupported for tasks without
        classes or tokens, and for answers of no more than ``skip`` tokens.
    Cost: ``epochs`` passes over the forget set, each batch with one of the retain set where ``λ > 0``; no
        copy of the model.
    Guarantee: empirical.
    Differs: the mean is taken over the tokens of each example, then over examples, in the code in
        open-unlearning over all tokens of the batch; there an example too short for ``skip`` counts
        nothing, here it is refused. Learning rate and epochs are open-unlearning's for all its methods:
        the paper's were not verified. Batch size 32.
    References: Yang, CE-U: Cross Entropy Unlearning, 2025, arXiv:2503.01224; locuslab/open-unlearning.
    """

    epochs: int = 10
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-5)
    skip: int = 1
    retain_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip < 0:
            raise ConfigError(f"must not be negative, got {self.skip}.", "skip")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if isinstance(task, CausalLM):
            tokens = (split.forget.column("labels")[:, 1:] != IGNORED).sum(1)
            if int(tokens.min()) <= self.skip:
                id_ = int(split.forget.ids[int(tokens.argmin())])
                raise Unsupported(
                    f"the answer of example {id_} has {int(tokens.min())} tokens to predict, all of which "
                    f"skip={self.skip} leaves alone. Set skip lower, or remove the example."
                )

    def forgetting(self, view: View, state: Any) -> Tensor:
        states = label_states(view.said, view.batch, state)
        counted = places(states) >= self.skip if isinstance(state, CausalLM) else None
        return mean_over_labels(states, of_labels(states, without_label), counted)


def places(states: TokenStates) -> Tensor:
    """The number of each label within its example, from 0. ``(M,)``."""
    rows = states.where[0]
    counts = torch.bincount(rows, minlength=states.shape[0])
    starts = counts.cumsum(0) - counts
    return torch.arange(len(rows), device=rows.device) - starts[rows]


def without_label(logits: Tensor, labels: Tensor) -> Tensor:
    """``CE(q, p)`` of logits ``(M, V)``, ``(M,)``."""
    return logits.logsumexp(-1) - (target(logits, labels) * logits).sum(-1)


def target(logits: Tensor, labels: Tensor) -> Tensor:
    """``q``: the softmax without the label, ``(M, V)``; no gradient."""
    return logits.detach().scatter(-1, labels[:, None], -torch.inf).softmax(-1)
