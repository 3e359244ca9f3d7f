"""UGradSL: gradient ascent with negatively smoothed labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.methods.base import methods
from expunge.methods.smoothed_labels import SmoothedLabels
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim


@methods.register("ugradsl")
@dataclass(frozen=True, kw_only=True)
class UGradSL(SmoothedLabels):
    """Climbs the loss of the forget set on negatively smoothed labels, once over the forget set an epoch.

    ``min_θ  p · mean_{i∈B_r} ℓ_i(θ) − (1 − p) · mean_{j∈B_f} ℓ_j^a(θ)``, ``ℓ^a`` the cross-entropy with
    the label ``(1 − a) onehot(y) + a / C``, ``a ≤ 0``. The true class is pushed down with weight
    ``1 + |a| (C − 1) / C``, and every other one pulled up with ``|a| / C``. Each batch of the forget set
    comes with one of the retain set.

    Args:
        retain_weight: ``p``.
        smoothing: ``a`` in [−1, 0]; 0 is ascent and descent on the true labels. None: for each forget
            example minus the fraction of the step's retain examples that are near it.
        near: the distance ``(1 − cos) / 2`` of centred logits below which two examples are near.

    Shapes: logits ``(N, C)``, of every labelled token where ``smoothing`` is given. Unsupported for
        tasks without classes.
    Cost: ``epochs`` passes over the forget set, each batch with one of the retain set; the adaptive
        ``a`` one matrix ``(n_f, n_r)`` a step; no copy of the model.
    Guarantee: empirical.
    Differs: written from the equations; the authors' code could not be had. ``a``, ``p``, learning rate
        and the distance of the adaptive rule (undefined in what we could read) are ours. There
        ``|a| = c / |B_f|`` with ``c`` near retain examples; here ``c / |B_r|``, the same for equal
        batches and never above 1. The objective has no lower bound for any ``a ≤ 0`` and nothing but
        ``epochs`` stops it; ``a ≥ −1`` bounds each example's gradient for the logits by ``√5``.
    References: Di et al., Label Smoothing Improves Machine Unlearning, 2024, arXiv:2406.07698.
    """

    epochs: int = 5
    optim: Optim = SGD(lr=0.01, weight_decay=5e-4)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain"),)
