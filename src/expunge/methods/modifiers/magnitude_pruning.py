"""Prune first, then unlearn: magnitude pruning for any objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.modifier import Gradients, Modifier, modifiers
from expunge.training.session import Session


@modifiers.register("magnitude_pruning")
@dataclass(frozen=True, kw_only=True)
class MagnitudePruning(Modifier):
    """Sets the smallest weights to zero before the first step and keeps them there, exactly.

    ``m = 1[ |θ_o| > γ ]`` over all weights with two or more dimensions that may move, ``γ`` such that a
    fraction ``rate`` of them, ranked together, is zero; then any method, with ``θ ← m ⊙ θ`` throughout.
    Gradients of pruned weights are zeroed, so that neither momentum nor clipping knows of them, and the
    weights again after each step, whatever another modifier or the optimiser put there. Biases and
    normalisation are not pruned.

    Put it before other modifiers: they then see the pruned model. What an objective calls the original
    is the model as it was handed in, not pruned.

    Args:
        rate: fraction of the weights that become zero.

    Cost: no pass over data; one boolean a weight.
    Differs: one-shot, at the moment of unlearning. The paper prunes, rewinds and trains the sparse model
        to convergence before (95 % with OMP); no training but the method's own follows here, hence the
        lower default. The authors' code prunes convolutions alone; here linear and embedding layers too.
    References: Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023,
        arXiv:2304.04934.
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"is a fraction in (0, 1), got {self.rate}.", "rate")

    def prepare(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        movable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if any("lora_" in name for name in movable):
            raise Unsupported(
                "magnitude_pruning prunes weights, not adapters. Choose another scope than lora."
            )
        weights = {name: p.detach() for name, p in movable.items() if p.ndim > 1}
        if not weights:
            raise Unsupported(
                "magnitude_pruning found no weight of two or more dimensions that may move. "
                "Choose a scope that holds one."
            )
        kept = parameters.largest({name: value.abs() for name, value in weights.items()}, 1 - self.rate)
        self.after_step(model, kept)
        return kept

    def gradients(
        self, terms: dict[str, Gradients], state: dict[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> dict[str, Gradients]:
        return {
            term: {name: g * state[name] if name in state else g for name, g in gradients.items()}
            for term, gradients in terms.items()
        }

    @torch.no_grad()
    def after_step(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        for name, weight in model.named_parameters():
            if name in state:
                weight.mul_(state[name])
