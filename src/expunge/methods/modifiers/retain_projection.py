"""Geometric disentanglement: forget without a first-order rise of the retain loss."""

from __future__ import annotations

from dataclasses import dataclass, field

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

    Args:
        directions: how many recent retain gradients span the space that is left alone.

    Cost: one backward pass for each term and, where the objective has no term ``retain``, one forward
        and backward pass over a retain batch a step; ``directions`` copies of the parameters.
    Differs: one global projection over all parameters (the authors' code ships per-tensor, rank-one and
        active-set forms that disagree); whitening with ``H^(-1/2)``, which makes the stated first-order
        identity exact, where their per-tensor form divides by ``H``; the basis slides, where theirs
        stops growing. AdamW's first step, before it has second moments, is projected with ``I``.
        Momentum of earlier steps and weight decay are outside the projection.
    References: Geometric-Disentanglement Unlearning, 2025; code GeometricUnlearn.
    """

    directions: int = 1

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
        basis = _orthonormal([vector / root for vector in state.recent])
        changed = {}
        for term, gradients in terms.items():
            if term in ("retain", PROBE) or basis is None:
                changed[term] = gradients
                continue
            whitened = _flat(gradients, template) / root
            whitened = whitened - basis @ (basis.T @ whitened)
            changed[term] = _unflat(whitened * root, template)
        return changed


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
        norm = vector.norm()
        for column in basis:
            vector = vector - (column @ vector) * column
        if vector.norm() > 1e-3 * norm:
            basis.append(vector / vector.norm())
    return torch.stack(basis, dim=1) if basis else None
