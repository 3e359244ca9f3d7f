"""Catastrophic forgetting of the last k layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from expunge.methods.base import GradientMethod, methods
from expunge.methods.scopes.last_layers import LastLayers
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.scope import Scope
from expunge.training.step import Step


@methods.register("cf_k")
@dataclass(frozen=True, kw_only=True)
class CFK(GradientMethod):
    """Continues to train the last k layers on the retain set and leaves all before them as they were.

    ``min_{θ_k} mean_{i∈D_r} ℓ_i(θ)`` from ``θ_o``, ``θ_k`` the parameters of the last ``k`` layers. It is
    ``finetune`` × the scope ``last_layers``, and nothing else; ``k`` is ``scope.count``.

    Shapes: as the task's; works for every task.
    Cost: ``epochs`` forward and backward passes over the retain set, the backward pass through the last
        ``k`` layers alone; no copy of the model.
    Guarantee: empirical.
    Differs: one optimiser for the whole run; the worst-case-sets code makes a new one for every epoch,
        which drops the momentum. BatchNorm outside the last layers keeps its running statistics; in
        SCRUB's code they move. That code trains ``layer4`` of a ResNet and freezes the classifier behind
        it (``scope={kind: modules, patterns: [layer4]}``), by SGD without momentum at batch size 64 or
        128; ``k = 1``, the classifier, and the momentum are choices of ours.
    References: Goel et al., Towards Adversarial Evaluations for Inexact Machine Unlearning, 2022,
        arXiv:2201.06640; code of Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023.
    """

    epochs: int = 10
    optim: Optim = SGD(lr=0.01, weight_decay=5e-4)
    scope: Scope = LastLayers(count=1)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain"),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        return {"retain": step.retain.loss.mean()}
