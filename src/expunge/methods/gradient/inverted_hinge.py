"""The inverted hinge loss of LoKU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from expunge.methods.base import methods
from expunge.methods.labels import LogitObjective, label_states, mean_over_labels, of_labels
from expunge.training.optim import AdamW, Optim
from expunge.training.step import View


@methods.register("inverted_hinge")
@dataclass(frozen=True, kw_only=True)
class InvertedHinge(LogitObjective):
    """Moves probability from the true label to its strongest rival, and then leaves it alone (IHL).

    ``min_θ  mean_{i∈D_f} mean_t [ 1 + p(y_t) − max_{v≠y_t} p(v) ] + λ mean_{i∈D_r} ℓ_i(θ)``; the bracket
    is in [0, 2], 1 where the true label and its rival tie. Unlike gradient ascent it is bounded, and no
    label but these two is pushed.

    Args:
        retain_weight: ``λ``.

    Shapes: logits ``(N, C)``, of every labelled token of a language model. Unsupported for tasks without
        classes or tokens.
    Cost: ``epochs`` passes over the forget set, each batch with one of the retain set where ``λ > 0``; no
        copy of the model.
    Guarantee: empirical.
    Differs: the softmax is always taken; the authors' code leaves logits as they are where all of them
        happen to lie in [0, 1]. The retain loss is the mean over examples of their token means, there the
        mean over all tokens of the batch. The gradient is scaled by ``p (1 − p)``: tokens known by heart
        (``p ≈ 1``) hardly move under SGD, so AdamW is the default, with the learning rate and epochs of
        the authors' Llama-2 runs. Their runs train adapters in chosen directions (scope ``fila``). Batch
        size 32.
    References: Cha et al., Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs (LoKU),
        ICLR 2025, arXiv:2408.06621.
    """

    epochs: int = 5
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-4)

    def forgetting(self, view: View, state: Any) -> Tensor:
        states = label_states(view.said, view.batch, state)
        return mean_over_labels(states, of_labels(states, hinge))


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """``1 + p(y) − max_{v≠y} p(v)`` of logits ``(M, V)``, ``(M,)``."""
    chances, own = logits.softmax(-1), labels[:, None]
    return 1 + chances.gather(-1, own)[:, 0] - chances.scatter(-1, own, -1.0).amax(-1)
