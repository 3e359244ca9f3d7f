"""The Lorentz model of hyperbolic space: maps at its root, geodesic distances, entailment cones.

Points of the space of curvature ``−c`` are given by their space component ``x``, ``(…, D)``; the time
component is ``x_0 = √(1/c + ‖x‖²)`` and ``⟨x, y⟩_L = ⟨x, y⟩ − x_0 y_0``, which is ``−1/c`` of a point with
itself. The root is ``x = 0``. Distances are lengths of geodesics, not Euclidean norms of ``x``.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-8
EDGE = 1e-6
"""How far arguments of acos, asin and acosh stay from where their gradients are infinite."""


def time(x: Tensor, c: Tensor) -> Tensor:
    """``x_0``, ``(…,)``."""
    return (1 / c + x.square().sum(-1)).sqrt()


def product(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``⟨x, y⟩_L`` of each pair, ``(…,)``."""
    return (x * y).sum(-1) - time(x, c) * time(y, c)


def exp_root(v: Tensor, c: Tensor) -> Tensor:
    """The point that lies ``‖v‖`` from the root in direction ``v``: ``sinh(√c ‖v‖) v / (√c ‖v‖)``."""
    length = c.sqrt() * v.norm(dim=-1, keepdim=True).clamp(min=TINY)
    found: Tensor = v * torch.sinh(length) / length
    return found


def log_root(x: Tensor, c: Tensor) -> Tensor:
    """The tangent vector at the root that leads to ``x``: ``asinh(√c ‖x‖) x / (√c ‖x‖)``."""
    length = c.sqrt() * x.norm(dim=-1, keepdim=True).clamp(min=TINY)
    found: Tensor = x * torch.asinh(length) / length
    return found


def from_root(x: Tensor, c: Tensor) -> Tensor:
    """The geodesic distance to the root, ``asinh(√c ‖x‖) / √c``, ``(…,)``."""
    return torch.asinh(c.sqrt() * x.norm(dim=-1)) / c.sqrt()


def distances(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """Geodesic distances ``acosh(−c ⟨x, y⟩_L) / √c`` of all pairs: ``(N, D)``, ``(M, D)`` to ``(N, M)``."""
    products = x @ y.T - time(x, c)[:, None] * time(y, c)
    return torch.acosh((-c * products).clamp(min=1 + EDGE)) / c.sqrt()


def aperture(x: Tensor, c: Tensor, constant: float = 0.1) -> Tensor:
    """Half the angle of the cone of what ``x`` entails, ``asin(2K / (√c ‖x‖))`` in radians, ``(…,)``."""
    found = 2 * constant / (c.sqrt() * x.norm(dim=-1)).clamp(min=TINY)
    return torch.asin(found.clamp(max=1 - EDGE))


def angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """The angle at ``x`` between the way on from the root and the way to ``y``, in radians, ``(…,)``.

    ``acos((y_0 + x_0 c ⟨x, y⟩_L) / (‖x‖ √((c ⟨x, y⟩_L)² − 1)))``: 0 where ``y`` lies beyond ``x``, π where it
    lies before it.
    """
    products = c * product(x, y, c)
    above = time(y, c) + time(x, c) * products
    below = x.norm(dim=-1) * (products.square() - 1).clamp(min=TINY).sqrt()
    return torch.acos((above / below.clamp(min=TINY)).clamp(-1 + EDGE, 1 - EDGE))


def drawn_in(x: Tensor, bound: Tensor, c: Tensor) -> Tensor:
    """Points farther from the root than ``bound``, moved along their geodesic to it, to that distance.

    ``x ← sinh(√c b) / √c · x / ‖x‖``; the others stay. ``bound`` is a geodesic distance, of any or each.
    """
    here = from_root(x, c)
    moved = exp_root(log_root(x, c) * (bound / here.clamp(min=TINY))[..., None], c)
    return torch.where((here > bound)[..., None], moved, x)
