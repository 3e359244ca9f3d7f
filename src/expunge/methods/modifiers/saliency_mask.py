"""The saliency mask of SalUn, for any objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.modifier import Gradients, Modifier, modifiers
from expunge.training.session import Session


@dataclass(frozen=True)
class Mask:
    """Which elements may move, and the values of all before the first step."""

    movable: dict[str, Tensor]
    start: dict[str, Tensor]


@modifiers.register("saliency_mask")
@dataclass(frozen=True, kw_only=True)
class SaliencyMask(Modifier):
    """Lets only the weights move whose forget-set gradient is largest at the start.

    ``m = 1[ |Σ_B ∇ mean_{i∈B} ℓ_i(θ_o)| ≥ γ ]`` over the batches of the forget set, ``γ`` such that a
    fraction ``keep`` of all movable weights passes, ranked together.

    Every other weight is exactly what it was, whatever the optimiser does: its gradient is zeroed
    and its value is restored after each step, because weight decay and momentum move weights that
    have no gradient. BatchNorm's running statistics are not weights and are not masked.

    Args:
        keep: fraction of weights that may move.
        batch_size: examples of the forget set in a backward pass.

    Cost: one forward and backward pass over the forget set; one boolean and one copy a weight.
    References: Fan et al., SalUn, ICLR 2024, arXiv:2310.12508.
    """

    keep: float = 0.5
    batch_size: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(f"is a fraction in (0, 1], got {self.keep}.", "keep")
        if self.batch_size < 1:
            raise ConfigError(f"must be at least 1, got {self.batch_size}.", "batch_size")

    def prepare(self, model: nn.Module, split: Split, task: Task, session: Session) -> Mask:
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        total, _ = parameters.gradient_sum(
            model, split.forget, task, session, names=list(weights), batch_size=self.batch_size
        )
        movable = parameters.largest({name: value.abs() for name, value in total.items()}, self.keep)
        return Mask(movable, {name: weight.detach().clone() for name, weight in weights.items()})

    def gradients(
        self, terms: dict[str, Gradients], state: Mask, optimizer: torch.optim.Optimizer
    ) -> dict[str, Gradients]:
        return {
            term: {name: gradient * state.movable[name] for name, gradient in gradients.items()}
            for term, gradients in terms.items()
        }

    @torch.no_grad()
    def after_step(self, model: nn.Module, state: Mask) -> None:
        for name, weight in model.named_parameters():
            if name in state.movable:
                weight.copy_(torch.where(state.movable[name], weight, state.start[name]))
