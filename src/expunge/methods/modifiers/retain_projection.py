"""Geometric disentanglement: forget without a first-order rise of the retain loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.tasks.base import Task
from expunge.training.loop import PROBE
from expunge.training.modifier import Gradients, Modifier, modifiers
from expunge.training.session import Session


@dataclass
class Basis:
    """The parameters by name, and recent retain gradients as flat vectors, oldest first."""

    parameters: dict[str, nn.Parameter]
    recent: list[Tensor] = field(default_factory=list)


@modifiers.register("retain_projection")
@dataclass(frozen=True, kw_only=True)
class RetainProjection(Modifier):
    """Removes from every other term's gradient its part along the recent retain gradients (GU).

    With ``H = diag(√v + ε)`` of the optimiser (``I`` for SGD) and ``g̃ = H^(-1/2) g``, ``U`` an
    orthonormal basis of the last ``directions`` retain gradients ``g̃_r``:
    ``g̃ ← g̃ − U Uᵀ g̃``, ``g = H^(1/2) g̃``. Then ``⟨g_r, H⁻¹ g⟩ = 0``: to first order the step of
    the forget term leaves the retain loss where it is. The term ``retain`` itself is not changed.

    With ``per=tensor`` each parameter tensor has its own ``U``. The inner product is then 0 in each tensor,
    and so in all of them, but more of the forget gradient is lost: one direction a tensor, not one in all.
    A tensor of no more elements than ``directions`` is then moved by the term ``retain`` alone.

    Args:
        directions: how many recent retain gradients span the space that is left alone. One whose part
            outside the others is below a thousandth of its length adds nothing to the basis.
        per: whether one projection serves all parameters (``model``) or each its own (``tensor``).

    Cost: one backward pass for each term and, where the objective has no term ``retain``, one forward
        and backward pass over a retain batch a step; ``directions`` copies of the parameters, twice
        that while a step is projected.
    Differs: of the forms that go by this name these are the two projections; the active-set form, which
        corrects the optimiser's finished step, and the choice of the last layers (see the scope
        ``last_blocks``) are not. Whitening with ``H^(-1/2)`` makes the stated first-order identity exact,
        where the authors' per-tensor form divides by ``H``. Lengths are compared in one metric,
        theirs divides a whitened by an unwhitened one. The basis slides, theirs stops growing when full.
        Each term has a gradient of its own, over all parts of a batch; theirs recovers the forget
        gradient by subtracting another loss's from the sum. No sign-aware share of the removed part is
        kept. AdamW's first step, before it has second moments, is projected with ``I``. Momentum of
        earlier steps and weight decay are outside the projection, as in theirs.
    References: Geometric-Disentanglement Unlearning, 2025; code GeometricUnlearn.
    """

    directions: int = 1
    per: Literal["model", "tensor"] = "model"

    separate = True
    protects_retain = True

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise ConfigError(f"must be at least 1, got {self.directions}.", "directions")

    def prepare(self, model: nn.Module, split: Split, task: Task, session: Session) -> Basis:
        return Basis({name: p for name, p in model.named_parameters() if p.requires_grad})

    def gradients(
        self, terms: dict[str, Gradients], state: Basis, optimizer: torch.optim.Optimizer
    ) -> dict[str, Gradients]:
        retain = terms.get("retain", terms.get(PROBE))
        template: Gradients = {name: parameter.detach() for name, parameter in state.parameters.items()}
        root = _root(state, template, optimizer)
        if retain is not None:
            state.recent = [*state.recent, _flat(retain, template)][-self.directions :]
        sizes = [value.numel() for value in template.values()]
        sizes = sizes if self.per == "tensor" else [sum(sizes)]
        recent = [(vector / root).split(sizes) for vector in state.recent]
        bases = [_orthonormal([parts[i] for parts in recent]) for i in range(len(sizes))]
        return {
            term: gradients
            if term in ("retain", PROBE)
            else _unflat(_outside((_flat(gradients, template) / root).split(sizes), bases) * root, template)
            for term, gradients in terms.items()
        }


def _outside(parts: Sequence[Tensor], bases: Sequence[Tensor | None]) -> Tensor:
    """Each part without what lies in the span of its basis, one after the other again."""
    return torch.cat([part if U is None else _less(part, U) for part, U in zip(parts, bases, strict=True)])


def _less(vector: Tensor, basis: Tensor) -> Tensor:
    """``v − U Uᵀ v``, twice: what rounding leaves of it the first time is large beside a small rest."""
    for _ in range(2):
        vector = vector - basis @ (basis.T @ vector)
    return vector


def _root(basis: Basis, template: Gradients, optimizer: torch.optim.Optimizer) -> Tensor:
    """``√(√v + ε)`` as one vector; ones where the optimiser keeps no second moments (yet)."""
    if getattr(optimizer, "metric", optimizer) is None:
        raise Unsupported(
            "retain_projection says nothing about a step that is no linear function of the gradient. "
            "Use it with sgd or adamw."
        )
    roots = {}
    eps = optimizer.param_groups[0].get("eps", 0.0)
    for name, gradient in template.items():
        moment = optimizer.state.get(basis.parameters[name], {}).get("exp_avg_sq")
        roots[name] = torch.ones_like(gradient) if moment is None else (moment.sqrt() + eps).sqrt()
    return _flat(roots, template)


def _flat(gradients: Gradients, template: Gradients) -> Tensor:
    return torch.cat(
        [gradients.get(name, torch.zeros_like(value)).flatten() for name, value in template.items()]
    )


def _unflat(vector: Tensor, template: Gradients) -> Gradients:
    parts = vector.split([value.numel() for value in template.values()])
    return {name: part.view_as(value) for part, (name, value) in zip(parts, template.items(), strict=True)}


def _orthonormal(vectors: list[Tensor]) -> Tensor | None:
    """Columns spanning the vectors, ``(D, k)``; None when there is no direction."""
    basis: list[Tensor] = []
    for vector in vectors:
        rest = _less(vector, torch.stack(basis, dim=1)) if basis else vector
        if rest.norm() > 1e-3 * vector.norm():
            basis.append(rest / rest.norm())
    return torch.stack(basis, dim=1) if basis else None
