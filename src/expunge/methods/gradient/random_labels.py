"""Random labels on the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from expunge.methods.base import GradientMethod, methods
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.step import Step


@methods.register("random_labels")
@dataclass(frozen=True, kw_only=True)
class RandomLabels(GradientMethod):
    """Trains the forget examples on targets that carry no information, then the retain set on its own (RL).

    Each epoch: one pass of ``min_θ mean_{i∈D_f} ℓ(f_θ(x_i), y')``, ``y'`` drawn anew from the task's
    uninformative targets (uniform over all classes), then one pass of ``min_θ mean_{i∈D_r} ℓ_i(θ)``. Of a
    denoiser ``y'`` is what the model itself predicts under a condition so drawn, without a gradient.

    Shapes: as the task's. Unsupported where the task has no targets to replace.
    Cost: ``epochs`` forward and backward passes over all data; no copy of the model.
    Guarantee: empirical.
    Differs: nothing against the CIFAR-10 branch of the SalUn code (true label included, labels drawn
        for every epoch). Its CIFAR-100 branch draws once an epoch and shuffles both sets together;
        the amnesiac variant fixes labels other than the true one.
    References: Golatkar et al., CVPR 2020; Graves et al., Amnesiac Machine Learning, AAAI 2021,
        arXiv:2010.10981; code of Fan et al., SalUn, ICLR 2024.
    """

    epochs: int = 10
    optim: Optim = SGD(lr=0.01, weight_decay=5e-4)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"), Pass("retain"))

    def objective(self, step: Step) -> dict[str, Tensor]:
        if step.over == "forget":
            return {"forget": step.forget.uninformed_loss.mean()}
        return {"retain": step.retain.loss.mean()}
