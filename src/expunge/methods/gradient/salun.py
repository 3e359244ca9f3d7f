"""SalUn: random labels, for the salient weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from expunge.methods.base import GradientMethod, methods
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.training.loop import Pass
from expunge.training.modifier import Modifier
from expunge.training.optim import SGD, Optim
from expunge.training.step import Step


@methods.register("salun")
@dataclass(frozen=True, kw_only=True)
class SalUn(GradientMethod):
    """Random-label training in which only the weights that matter for the forget set may move.

    ``m = 1[ |∇_θ mean_{i∈D_f} ℓ_i(θ_o)| ≥ γ ]`` with ``γ`` the threshold that keeps a fraction (half)
    of all weights, then ``θ ← θ_o + m ⊙ Δ`` with ``Δ`` from random labels on ``D_f`` and the true
    ones on ``D_r``. It is ``random_labels`` × the modifier ``saliency_mask``, and nothing else.

    Shapes: as the task's. Unsupported where the task has no targets to replace.
    Cost: one pass over the forget set for the mask, then ``epochs`` passes over all data; two copies
        of the parameters (mask as booleans, values to restore).
    Guarantee: empirical.
    Differs: weights outside the mask are restored after every step, so that weight decay and momentum
        cannot move them; until 2026-02-28 the authors' code masked only the gradient, and all
        published figures predate that fix. The mask's gradient is taken without augmentation.
        BatchNorm's running statistics are not weights and move, as in the authors' code. As there, the
        true label may be drawn and the retain term has no weight ``α``.
    References: Fan et al., SalUn, ICLR 2024, arXiv:2310.12508. On CIFAR-10 (ResNet-18, 10 % random)
        the paper reports UA 2.85, RA 99.62, TA 93.93, MIA 14.39.
    """

    epochs: int = 10
    optim: Optim = SGD(lr=0.013, weight_decay=5e-4)
    modifiers: tuple[Modifier, ...] = (SaliencyMask(),)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"), Pass("retain"))

    def objective(self, step: Step) -> dict[str, Tensor]:
        if step.over == "forget":
            return {"forget": step.forget.relabelled.loss.mean()}
        return {"retain": step.retain.loss.mean()}
