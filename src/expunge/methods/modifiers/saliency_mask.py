"""The saliency mask of SalUn, for any objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from expunge.data.split import Split
from expunge.methods.masks import MaskModifier
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.modifier import modifiers
from expunge.training.session import Session


@modifiers.register("saliency_mask")
@dataclass(frozen=True, kw_only=True)
class SaliencyMask(MaskModifier):
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

    def scores(
        self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session
    ) -> dict[str, Tensor]:
        total, _ = parameters.gradient_sum(
            model, split.forget, task, session, names=names, batch_size=self.batch_size
        )
        return {name: value.abs() for name, value in total.items()}
