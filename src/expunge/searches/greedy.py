"""The forget set whose removal changes the model least, or most."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.errors import ConfigError, DataError
from expunge.methods.scopes.last_layers import LastLayers
from expunge.searches.base import Mode, Sized, chosen, searches
from expunge.searches.gradients import example_gradients
from expunge.searches.result import SearchResult
from expunge.searches.units import Units
from expunge.tasks.base import Task
from expunge.training.scope import Scope
from expunge.training.session import Session


@searches.register("greedy")
@dataclass(frozen=True, kw_only=True)
class Greedy(Sized):
    """The set whose removal moves the model least to first order (``worst``), or most (``easiest``).

    ``J(S) = g_Sᵀ (F + λ I)⁻¹ g_S``, ``g_S = Σ_{i∈S} ∇ℓ_i(θ_o)``, ``F = mean_i ∇ℓ_i ∇ℓ_iᵀ``. Training without
    ``S`` moves the parameters by about ``F⁻¹ g_S / N``, and the predictions, as a divergence, by half of
    ``J(S) / N²``. Units are added one at a time, each the one that makes ``J`` smallest (largest). A ranking
    looks at each unit alone; here gradients that cancel are forgotten together, and for the easiest set
    those that point the same way: a group whose removal leaves nobody to take its place.

    Args:
        size: ``m``, a number of units or their fraction of all.
        unit: what is forgotten whole: ``example``, ``class``, ``subject`` or ``prompt``.
        mode: ``worst`` for the smallest change, ``easiest`` for the largest.
        scope: the parameters that are differentiated.
        dims: gradients of more numbers are projected onto so many random directions.
        damping: ``λ`` as a fraction of the mean eigenvalue of ``F``.
        batch_size: examples whose gradients are held at once.

    Cost: one pass of gradients over the data, ``m`` products of a ``U × dims`` matrix with a vector, memory
        for that matrix.
    Differs: our own; no paper is followed. Group influence with the empirical Fisher matrix of the last
        layer in the place of the Hessian; greedy, so without a guarantee for the set as a whole. Where
        the original fits all data the gradients are small and noisy.
    References: group influence: Koh et al., On the Accuracy of Influence Functions for Measuring Group
        Effects, NeurIPS 2019, arXiv:1905.13289; random projection of gradients: Park et al., TRAK, ICML
        2023, arXiv:2303.14186.
    """

    mode: Mode = "worst"
    scope: Scope = LastLayers()
    dims: int = 512
    damping: float = 0.1
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dims", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if not self.damping > 0:
            raise ConfigError(f"must be above 0, got {self.damping}.", "damping")

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        units = Units.read(train, task, self.unit)
        m = units.count(self.size)
        gradients = self._gradients(model, train, task, session)
        if not gradients.any():
            raise DataError("the loss has no gradient at any example. Choose another scope.")
        white = _whitened(gradients, self.damping)
        blank = torch.zeros(len(units), white.shape[1], dtype=white.dtype, device=white.device)
        picked, change = _picked(blank.index_add(0, units.of.to(white.device), white), m, self.mode)
        word = "least" if self.mode == "worst" else "most"
        words = f"those whose removal changes the model {word}, by greedy search"
        found = chosen(train, units.rows(picked.cpu()), words, self.unit)
        return replace(found, details={"divergence": 0.5 * change / len(train) ** 2})

    def _gradients(self, model: nn.Module, train: Data, task: Task, session: Session) -> Tensor:
        """``(N, min(P, dims))`` float32 on the device."""
        rows, directions = [], None
        for found in example_gradients(model, train, task, session, self.scope, self.batch_size):
            if found.shape[1] > self.dims:
                if directions is None:
                    draws = session.generator("greedy", "directions")
                    directions = torch.randn(found.shape[1], self.dims, generator=draws).to(found.device)
                found = found @ directions / self.dims**0.5
            rows.append(found)
        return torch.cat(rows)


def _whitened(gradients: Tensor, damping: float) -> Tensor:
    """``L⁻¹ g_i`` with ``L Lᵀ = F + λ I``, so that ``J(S) = ‖Σ_{i∈S} L⁻¹ g_i‖²``."""
    rows = gradients.double()
    fisher = rows.T @ rows / len(rows)
    fisher.diagonal().add_(damping * fisher.diagonal().mean())
    lower = torch.linalg.cholesky(fisher)
    white: Tensor = torch.linalg.solve_triangular(lower, rows.T, upper=False).T.contiguous()
    return white


def _picked(vectors: Tensor, m: int, mode: Mode) -> tuple[Tensor, float]:
    """``m`` rows of ``(U, D)``, each making the squared norm of the sum smallest (largest); that norm."""
    squares = vectors.square().sum(1)
    taken = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
    total = torch.zeros_like(vectors[0])
    sign = 1.0 if mode == "worst" else -1.0
    for _ in range(m):
        change = sign * (squares + 2 * (vectors @ total))
        row = change.masked_fill(taken, torch.inf).argmin()
        taken[row] = True
        total = total + vectors[row]
    return taken.nonzero()[:, 0], float(total.square().sum())
