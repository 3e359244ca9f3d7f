"""Selective synaptic dampening without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.methods.base import methods
from expunge.methods.edits.dampening import Dampening
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.session import Session


@methods.register("lfssd")
@dataclass(frozen=True, kw_only=True)
class LFSSD(Dampening):
    """Shrinks the weights that the size of the outputs depends on far more for the forget set.

    ``I_j(S) = mean_B |∂ mean_{i∈B} ‖f(x_i)‖² / ∂θ_j|`` over the batches ``B`` of ``S``; where
    ``I_j(D_f) > α I_j(D)``: ``θ_j ← θ_j · min(1, λ I_j(D) / I_j(D_f))``. No label is read.

    Args:
        alpha: how much more important, ``α``. The default is a choice of ours: the authors' values
            are not verified. These importances are absolute, not squared, so ``α`` is about
            the root of the one that ``ssd`` needs, and a value above ``N / n_f`` hardly selects anything.
        dampening: ``λ``.
        batch_size: the size of the batches whose mean gradient is taken.

    Shapes: every parameter; buffers stay. Works for every task; outputs of more than one dimension
        an example (tokens, pixels) are summed over all of them.
    Cost: one forward and backward pass over all data and one over the forget set; two copies of the
        parameters. No training.
    Guarantee: empirical.
    Differs: the same batch size for both importances, over batches in random order that mix the
        examples to forget with the others, as in ``ssd``. The authors' code for it is not in their
        published repository; this follows the paper's definition as the spec sheet gives it.
    References: Foster et al., Loss-Free Machine Unlearning, 2024, arXiv:2402.19308.
    """

    alpha: float = 5.0

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
            generator=session.generator("lfssd"),
            measure=_size,
            transform=torch.abs,
        )


def _size(outputs: Tensor, batch: Batch) -> Tensor:
    """``‖f(x)‖²`` of each example, ``(N,)``."""
    return outputs.float().flatten(1).square().sum(1)
