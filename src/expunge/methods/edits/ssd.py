"""Selective synaptic dampening."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.base import Edit, methods
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.session import Session


@methods.register("ssd")
@dataclass(frozen=True, kw_only=True)
class SSD(Edit):
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

    alpha: float = 10.0
    dampening: float = 1.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("alpha", "dampening"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        if self.batch_size < 1:
            raise ConfigError(f"must be at least 1, got {self.batch_size}.", "batch_size")

    def edit(self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session) -> None:
        for_forget, for_all = (
            parameters.importance(
                model,
                data,
                task,
                session,
                names=names,
                batch_size=self.batch_size,
                generator=session.generator("ssd"),
            )
            for data in (split.forget, split.train())
        )
        weights = dict(model.named_parameters())
        for name in names:
            selected = for_forget[name] > self.alpha * for_all[name]
            factor = (self.dampening * for_all[name] / for_forget[name]).clamp(max=1.0)
            with torch.no_grad():
                weights[name].mul_(torch.where(selected, factor, 1.0))
