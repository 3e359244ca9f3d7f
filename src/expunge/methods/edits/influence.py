"""Influence unlearning: one Newton step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.base import Edit, methods
from expunge.tasks.base import Task
from expunge.training.curvature import (
    Kind,
    conjugate_gradient,
    curvature,
    flatten,
    unflatten,
    woodbury,
)
from expunge.training.parameters import batch_gradients, mean_gradient, zeros_like
from expunge.training.session import Event, Session


@methods.register("influence")
@dataclass(frozen=True, kw_only=True)
class Influence(Edit):
    """Moves the weights to where, to second order, training without the forget set would have ended.

    With ``L(θ) = (1/N) Σ_i ℓ_i + (l2/2) ‖θ‖²`` over all data and ``L_r`` the same over the retain set,

    ``θ ← θ + a (H + δ I)⁻¹ v``, ``v = ∇L − ∇L_r = (1/N) Σ_{i∈D_f} ∇ℓ_i − (n_f / (N n_r)) Σ_{i∈D_r} ∇ℓ_i``.

    It solves ``∇L_r(θ') = ∇L(θ)`` to first order: the gradient that training left over stays left over,
    and nothing is trained further. At a minimum of ``L`` that is the Newton step ``−H⁻¹ ∇L_r`` and with
    the exact ``H = ∇²L_r`` of a squared loss in a linear model it is retraining.

    Args:
        solver: ``cg``, conjugate gradients on products with ``H``; ``woodfisher``, where ``H`` is the
            empirical Fisher information ``(1/n) Σ_k g_k g_kᵀ`` of ``n`` single examples, inverted by
            Woodbury's identity.
        curvature: the ``H`` of ``cg``: ``gauss_newton``, which has no negative directions, or the
            ``hessian``. Both are one for models that are linear in their weights.
        scale: ``a``, 1 for the full step.
        damping: ``δ``; with ``null`` 10⁻³ for ``cg`` and 10⁻² for ``woodfisher``, choices of ours. The
            empirical Fisher information of a fitted model is far smaller than its Hessian, and too
            little damping then breaks the model.
        l2: the weight decay that the original was trained with (an SGD's). It is part of ``H``; in ``v``
            it cancels.
        samples: retained examples, drawn at random, that ``H`` is made of; all with ``null``.
        iterations: most products of ``cg``; fewer where the residual falls below ``tolerance``. What
            it ended at is reported as the event ``evaluated``.
        tolerance: of ``cg``, relative to ``‖v‖``.
        batch_size: examples in a backward pass; it does not change the result.

    Shapes: every parameter, flattened to ``(P,)``; buffers stay. Works for every task.
    Cost: one forward and backward pass over all data for ``v``. ``cg``: ``iterations`` forward and three
        (``hessian``: two) backward passes over the samples, five copies of the parameters.
        ``woodfisher``: one pass over the samples one by one, ``n`` copies of the parameters and ``2 n² P``
        multiplications. On a CPU a product of ``cg`` is several times a bare backward pass.
    Guarantee: empirical.
    Differs: the recursion of the code of Jia et al. keeps one vector and only rescales it, which makes its
        result ``v`` plus a multiple of the first retained example's gradient; here all are kept and the
        system is solved. Theirs has ``δ = 1`` and ``n = 1000`` fixed, and its ImageNet branch takes the
        retain gradient from the forget set. Conjugate gradients and the Gauss-Newton matrix are
        choices of ours.
    References: Izzo et al., Approximate Data Deletion from Machine Learning Models, AISTATS 2021; Jia et
        al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023, arXiv:2304.04934 (as IU); Koh
        and Liang, Understanding Black-box Predictions via Influence Functions, ICML 2017.
    """

    solver: Literal["cg", "woodfisher"] = "cg"
    curvature: Kind = "gauss_newton"
    scale: float = 1.0
    damping: float | None = None
    l2: float = 0.0
    samples: int | None = 1000
    iterations: int = 100
    tolerance: float = 1e-6
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("samples", "iterations", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"must be at least 1, got {value}.", name)
        for name in ("damping", "l2"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"must not be negative, got {value}.", name)
        for name in ("scale", "tolerance"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        if self.solver == "woodfisher" and self.diagonal == 0:
            raise ConfigError("woodfisher inverts nothing at 0. Give damping or l2.", "damping")

    @property
    def diagonal(self) -> float:
        """What is added to ``H``: the damping and the second derivative of the weight decay."""
        default = 1e-3 if self.solver == "cg" else 1e-2
        return (default if self.damping is None else self.damping) + self.l2

    def edit(self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session) -> None:
        forget, retain = (
            mean_gradient(model, data, task, session, names=names, batch_size=self.batch_size)
            for data in (split.forget, split.retain)
        )
        share = len(split.forget) / (len(split.forget) + len(split.retain))
        target = share * (flatten(forget, names) - flatten(retain, names))
        sample = self._sample(split.retain, session)
        solve = self._conjugate_gradient if self.solver == "cg" else self._woodfisher
        step = unflatten(solve(model, names, sample, task, session, target), forget, names)
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name in names:
                weights[name].add_(step[name], alpha=self.scale)

    def _sample(self, data: Data, session: Session) -> Data:
        if self.samples is None or self.samples >= len(data):
            return data
        chosen = torch.randperm(len(data), generator=session.generator("influence"))[: self.samples]
        return data.subset(data.ids[chosen])

    def _conjugate_gradient(
        self, model: nn.Module, names: list[str], data: Data, task: Task, session: Session, target: Tensor
    ) -> Tensor:
        size, kind = self.batch_size, self.curvature
        with curvature(model, data, task, session, names=names, batch_size=size, kind=kind) as product:
            found = conjugate_gradient(
                product,
                target,
                damping=self.diagonal,
                tolerance=self.tolerance,
                iterations=self.iterations,
            )
        reached = {"residual": found.residual}
        session.emit(Event("evaluated", "influence", found.iterations, self.iterations, reached))
        return found.value

    def _woodfisher(
        self, model: nn.Module, names: list[str], data: Data, task: Task, session: Session, target: Tensor
    ) -> Tensor:
        none = zeros_like(model, names)
        single = batch_gradients(model, data, task, session, names=names, batch_size=1)
        gradients = (flatten({**none, **found}, names) for _, found in single)
        return woodbury(gradients, target, damping=self.diagonal, count=len(data))
