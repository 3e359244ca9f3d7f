"""LoKU's adapters: they start where the forget set matters and the retain set does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.scopes.lora import LoRA
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.scope import Scope, scopes
from expunge.training.session import Session

EPSILON = 1e-5
"""Of the authors' code, in both places."""

EXTRA, ITERATIONS = 8, 4
"""Directions beyond the rank in the randomised decomposition, and its power iterations."""


@scopes.register("fila")
@dataclass(frozen=True, kw_only=True)
class FILA(Scope):
    """Low-rank adapters that start as the directions important for the forget set alone.

    For each weight ``W`` ``(out, in)``: ``F_f`` and ``F_r``, the mean over examples of the squared gradient
    of the loss; ``R = F_f / (F_r + 10⁻⁵)``; ``w_i = √(Σ_j R_ij)``; ``diag(w) W ≈ U Σ Vᵀ`` of rank ``r``;
    ``B = diag(1 / (w + 10⁻⁵)) U √Σ``, ``A = √Σ Vᵀ / s`` with ``s = α / r``. ``W`` is replaced by
    ``W − s B A``, which stays as it is, so that the function is the original's at the start to rounding.
    At the end ``W − s B A + s B' A'`` is the weight: a saved result is whole, with no adapter beside it.

    Args:
        rank: ``r``; 4 to 32 in the authors' scripts.
        alpha: ``α``; twice the rank there.
        targets: as in ``lora``, of linear layers.
        head: whether the last linear layer may be among them.
        batch_size: examples whose mean gradient is squared; with more than 1 the values are smaller
            where gradients of examples disagree, and no longer the Fisher information.

    Raises:
        MissingExtra: peft is not installed.
        Unsupported: no linear layer to adapt, or used without a forget and a retain set.

    Cost: one forward and backward pass over all data, example by example with ``batch_size=1``; two copies
        of the adapted weights; a decomposition of each.
    Differs: the squared gradients are of single examples, theirs of batches. The decomposition is
        randomised as theirs, but from the session's seed, and in float64; where a matrix is hardly larger
        than the rank it is exact. The changed base is never saved apart from the adapter, which
        in their code makes an evaluation wrong that loads the original base.
    References: Cha et al., Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs, ICLR
        2025, arXiv:2408.06621.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    head: bool = True
    batch_size: int = 1

    reads_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        LoRA(rank=self.rank)
        if self.batch_size < 1:
            raise ConfigError(f"must be at least 1, got {self.batch_size}.", "batch_size")

    def names(self, model: nn.Module) -> list[str]:
        raise Unsupported(
            "FILA adds parameters to train; a method that edits weights cannot use it. Choose another."
        )

    def enter(self, model: nn.Module) -> nn.Module:
        raise Unsupported("fila starts from data. Use lora where there is no forget and retain set.")

    def fitted(self, model: nn.Module, split: Split, task: Task, session: Session) -> Scope:
        found = LoRA(rank=self.rank, targets=self.targets, head=self.head).layers(model)
        layers = [n for n in found if isinstance(model.get_submodule(n), nn.Linear)]
        if not layers:
            raise Unsupported("fila adapts linear layers, and there is none to adapt. Use the scope lora.")
        names = [f"{name}.weight" for name in layers]
        if not all(model.get_parameter(name).is_floating_point() for name in names):
            raise Unsupported("fila needs gradients of the weights, and quantised ones have none. Use lora.")
        forget, retain = (
            parameters.importance(model, data, task, session, names=names, batch_size=self.batch_size)
            for data in (split.forget, split.retain)
        )
        factors = {}
        for name, key in zip(layers, names, strict=True):
            rows = (forget[key] / (retain[key] + EPSILON)).sum(1).sqrt()
            with seeding.seeded(seeding.derive(session.seed, "fila", name)):
                factors[name] = self._factors(model.get_parameter(key).detach(), rows)
        return Started(_Exact(rank=self.rank, alpha=self.alpha, targets=tuple(layers)), factors)

    def _factors(self, weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``B`` ``(out, r)`` and ``A`` ``(r, in)``, with zeros where the matrix has a lower rank."""
        rank, scale = min(self.rank, *weight.shape), self.alpha / self.rank
        rows = rows.double()
        size = min(rank + EXTRA, *weight.shape)
        left, values, right = torch.svd_lowrank(rows[:, None] * weight.double(), q=size, niter=ITERATIONS)
        roots = values[:rank].sqrt()
        up = weight.new_zeros(len(weight), self.rank)
        down = weight.new_zeros(self.rank, weight.shape[1])
        up[:, :rank] = left[:, :rank] * roots / (rows[:, None] + EPSILON)
        down[:rank] = (right[:, :rank] * roots).T / scale
        return up, down


class _Exact(LoRA):
    """Adapters of the named layers, by their whole names."""

    def layers(self, model: nn.Module) -> list[str]:
        return list(self.targets)


class Started(Scope):
    """Adapters that start at given factors, on weights from which their product was taken."""

    def __init__(self, adapters: LoRA, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.adapters, self.factors = adapters, factors

    def names(self, model: nn.Module) -> list[str]:
        return self.adapters.names(model)

    @torch.no_grad()
    def enter(self, model: nn.Module) -> nn.Module:
        entered = self.adapters.enter(model)
        scale = self.adapters.alpha / self.adapters.rank
        for name, (up, down) in self.factors.items():
            layer: Any = model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
            layer.base_layer.weight.sub_(scale * (up @ down))
        return entered

    def leave(self, model: nn.Module) -> nn.Module:
        return self.adapters.leave(model)
