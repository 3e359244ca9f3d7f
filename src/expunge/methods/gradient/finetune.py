"""Fine-tuning on the retain set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from expunge.methods.base import GradientMethod, methods
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.step import Step


@methods.register("finetune")
@dataclass(frozen=True, kw_only=True)
class Finetune(GradientMethod):
    """Fine-tunes on the retain set alone and hopes that the rest is forgotten on the way (FT).

    ``min_θ mean_{i∈D_r} ℓ_i(θ)``

    Shapes: as the task's; works for every task.
    Cost: ``epochs`` forward and backward passes over the retain set; no copy of the model.
    Guarantee: empirical.
    Differs: nothing; the field's code uses 10 epochs at learning rates from 0.01 to 0.1.
    References: Warnecke et al., Machine Unlearning of Features and Labels, NDSS 2023,
        arXiv:2108.11577; Golatkar et al., Eternal Sunshine of the Spotless Net, CVPR 2020.
    """

    epochs: int = 10
    optim: Optim = SGD(lr=0.01, weight_decay=5e-4)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain"),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        return {"retain": step.retain.loss.mean()}
