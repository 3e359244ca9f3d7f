"""Gradient ascent on the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from expunge.methods.base import GradientMethod, methods
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.step import Step


@methods.register("grad_ascent")
@dataclass(frozen=True, kw_only=True)
class GradAscent(GradientMethod):
    """Climbs the loss of the forget set (GA, NegGrad).

    ``max_θ mean_{i∈D_f} ℓ_i(θ)``

    The loss has no upper bound: with a learning rate a little too high the model collapses suddenly.
    Where it becomes NaN the run ends with an error; a collapse short of that shows in retain accuracy.

    Shapes: as the task's; works for every task.
    Cost: ``epochs`` forward and backward passes over the forget set; no copy of the model.
    Guarantee: empirical.
    Differs: nothing; BatchNorm's statistics move on forget batches as in the field's code
        (``mode="eval"`` stops that).
    References: Thudi et al., Unrolling SGD, EuroS&P 2022, arXiv:2109.13398; Golatkar et al., CVPR 2020.
    """

    epochs: int = 5
    optim: Optim = SGD(lr=1e-3, weight_decay=5e-4)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        return {"forget": -step.forget.loss.mean()}
