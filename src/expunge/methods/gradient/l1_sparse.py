"""Fine-tuning on the retain set with a sparsity penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.session import Session
from expunge.training.step import Step


@methods.register("l1_sparse")
@dataclass(frozen=True, kw_only=True)
class L1Sparse(GradientMethod):
    """Fine-tunes on the retain set while an l1 penalty, fading over the epochs, shrinks every weight.

    ``min_θ mean_{i∈D_r} ℓ_i(θ) + a_t ‖θ‖₁`` in epoch ``t = 0, 1, …``, with
    ``a_t = α max(0, 1 − t / (K − K0))``, ``K`` the epochs and ``K0`` those at the end without penalty.
    The penalty falls on every parameter that may move, biases and those of BatchNorm included.

    Args:
        alpha: ``α``.
        no_l1_epochs: ``K0``, below ``epochs``.

    Shapes: every parameter; works for every task. Unsupported with a scope that adds parameters, whose
        size is not that of the weights.
    Cost: ``epochs`` forward and backward passes over the retain set; no copy of the model.
    Guarantee: empirical.
    Differs: nothing in the step; no weight is set to zero, there as here (the gradient is ``a_t sign θ``).
        ``no_l1_epochs = epochs`` is refused: in the authors' CIFAR code it means a constant penalty in
        every epoch, in their ImageNet code none. The default of ``alpha`` is ours: 5e-4 is recalled as
        the paper's value, not verified. The 0.2 of their command line is meant for other methods' noise
        and destroys the model; the worst-case-sets code has 1e-3 and 1e-4.
    References: Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023,
        arXiv:2304.04934. On CIFAR-10 (ResNet-18, 10 % random) SalUn's table has for it UA 4.19,
        RA 97.74, TA 91.59, MIA 9.84.
    """

    epochs: int = 10
    optim: Optim = SGD(lr=0.01, weight_decay=5e-4)
    alpha: float = 5e-4
    no_l1_epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ConfigError(
                f"must be above 0, got {self.alpha}; without a penalty it is finetune.", "alpha"
            )
        if not 0 <= self.no_l1_epochs < self.epochs:
            raise ConfigError(
                f"must be from 0 to {self.epochs - 1}, one less than epochs, got {self.no_l1_epochs}; "
                "without a penalty in any epoch it is finetune.",
                "no_l1_epochs",
            )

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Any:
        self.scope.names(model)  # refuses a scope that adds parameters
        return None

    def objective(self, step: Step) -> dict[str, Tensor]:
        terms = {"retain": step.retain.loss.mean()}
        weight = self.alpha * (1 - step.epoch / (self.epochs - self.no_l1_epochs))
        if weight > 0:
            sizes = [p.abs().sum() for p in step.model.parameters() if p.requires_grad]
            terms["penalty"] = weight * torch.stack(sizes).sum()
        return terms
