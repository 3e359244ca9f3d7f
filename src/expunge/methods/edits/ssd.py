"""Selective synaptic dampening."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.methods.base import methods
from expunge.methods.edits.dampening import Dampening
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.session import Session


@methods.register("ssd")
@dataclass(frozen=True, kw_only=True)
class SSD(Dampening):
    """Shrinks the weights that matter far more for the forget set than for all data.

    ``I_j(S) = mean_B (∂ mean_{i∈B} ℓ_i / ∂θ_j)²`` over the batches ``B`` of ``S``; where
    ``I_j(D_f) > α I_j(D)``: ``θ_j ← θ_j · min(1, λ I_j(D) / I_j(D_f))``.

    Args:
        alpha: how much more important, ``α``. Very sensitive: the authors search it for each
            checkpoint, in [0.1, 100].
        dampening: ``λ``.
        batch_size: the size of the batches whose mean gradient is squared.

    Shapes: every parameter; buffers (BatchNorm's statistics) stay. Works for every task.
    Cost: one forward and backward pass over all data and one over the forget set; two copies of the
        parameters. No training.
    Guarantee: empirical.
    Differs: the same batch size for both importances, over batches in random order that mix the
        examples to forget with the others. The squared gradient of a batch's mean shrinks
        with the batch, so the authors' two sizes (128 and 64) bias the comparison with ``α``.
        Their bound called ``lower_bound`` is the upper bound 1 here. No augmentation.
    References: Foster et al., Fast Machine Unlearning Without Retraining Through Selective Synaptic
        Dampening, AAAI 2024, arXiv:2308.07707; α 10, λ 1 for ResNet-18.
    """

    def importance(
        self, model: nn.Module, names: list[str], data: Data, task: Task, session: Session
    ) -> dict[str, Tensor]:
        return parameters.importance(
            model,
            data,
            task,
            session,
            names=names,
            batch_size=self.batch_size,
            generator=session.generator("ssd"),
        )
