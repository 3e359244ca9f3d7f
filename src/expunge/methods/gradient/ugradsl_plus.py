"""UGradSL+: fine-tuning with ascent on negatively smoothed labels beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.methods.base import methods
from expunge.methods.smoothed_labels import SmoothedLabels
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim


@methods.register("ugradsl_plus")
@dataclass(frozen=True, kw_only=True)
class UGradSLPlus(SmoothedLabels):
    """Fine-tunes on the retain set and climbs the loss of the forget set on negatively smoothed labels.

    The objective of ``ugradsl``, ``min_θ  p · mean_{i∈B_r} ℓ_i(θ) − (1 − p) · mean_{j∈B_f} ℓ_j^a(θ)``
    with ``ℓ^a`` the cross-entropy with the label ``(1 − a) onehot(y) + a / C``, ``a ≤ 0``, but an epoch
    is a pass over the retain set; the forget batches beside it start again when they are used up.

    Args:
        retain_weight: ``p``.
        smoothing: ``a`` in [−1, 0]; 0 is ``grad_diff``. None: for each forget example minus the fraction
            of the step's retain examples that are near it.
        near: the distance ``(1 − cos) / 2`` of centred logits below which two examples are near.

    Shapes: logits ``(N, C)``, of every labelled token where ``smoothing`` is given. Unsupported for
        tasks without classes.
    Cost: ``epochs`` passes over the retain set, each batch with one of the forget set: ``n_r / n_f``
        times the ascent of ``ugradsl``. The adaptive ``a`` is one matrix ``(n_f, n_r)`` a step; no copy
        of the model.
    Guarantee: empirical.
    Differs: as ``ugradsl``: written from the equations, with ``a``, ``p``, learning rate and the distance
        of the adaptive rule of ours, and ``|a|`` the near fraction of the retain batch. The objective has
        no lower bound and nothing but ``epochs`` stops it.
    References: Di et al., Label Smoothing Improves Machine Unlearning, 2024, arXiv:2406.07698.
    """

    epochs: int = 5
    optim: Optim = SGD(lr=0.01, weight_decay=5e-4)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain", beside="forget"),)
