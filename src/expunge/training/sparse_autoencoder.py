"""A top-k sparse autoencoder of hidden states."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from expunge.data.arrays import ArrayData
from expunge.tasks.regression import Regression
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import Optim
from expunge.training.session import Session
from expunge.training.step import Step


class SparseAutoencoder(nn.Module):
    """``f = relu(top_k(W_e (x − b) + c))`` and ``x̂ = W_dᵀ f + b``, with rows of ``W_d`` of length 1.

    Args:
        encode, decode: ``W_e`` and ``W_d``, ``(F, D)`` each.
        latent: ``c`` ``(F,)``.
        centre: ``b`` ``(D,)``.
        active: ``k``, features of a state that may be other than 0.
    """

    def __init__(self, encode: Tensor, decode: Tensor, latent: Tensor, centre: Tensor, active: int) -> None:
        super().__init__()
        self.encode, self.decode = nn.Parameter(encode), nn.Parameter(decode)
        self.latent, self.centre = nn.Parameter(latent), nn.Parameter(centre)
        self.active = active

    def features(self, states: Tensor) -> Tensor:
        """``f``, ``(…, D)`` to ``(…, F)``."""
        codes = (states - self.centre) @ self.encode.T + self.latent
        top = codes.topk(self.active, -1)
        return torch.zeros_like(codes).scatter(-1, top.indices, top.values.relu())

    def states(self, features: Tensor) -> Tensor:
        """``x̂``, ``(…, F)`` to ``(…, D)``."""
        return features @ self.decode + self.centre

    def forward(self, states: Tensor) -> Tensor:
        return self.states(self.features(states))


def fit_autoencoder(
    states: Tensor,
    features: int,
    active: int,
    *,
    epochs: int,
    batch_size: int,
    optim: Optim,
    session: Session,
) -> SparseAutoencoder:
    """An autoencoder that minimises ``mean (x̂ − x)²`` on sequences of states ``(n, T, D)``.

    It starts at random features of length 1, the same for both matrices, and ``b`` the geometric median of
    the states. Rows of ``W_d`` are made of length 1 after every step, so that what is returned has them.
    """
    draws = session.generator("features")
    rows = unit(torch.randn(features, states.shape[-1], generator=draws))
    start = SparseAutoencoder(
        rows.clone(), rows, torch.zeros(features), geometric_median(states.flatten(0, 1)), active
    )

    def objective(step: Step) -> dict[str, Tensor]:
        given = step.retain.batch["inputs"]
        return {"retain": (step.model(given) - given).square().mean()}

    def after(model: nn.Module, _: int) -> bool:
        with torch.no_grad():
            weight = model.get_parameter("decode")
            weight.copy_(unit(weight))
        return False

    plan = Plan(
        what="sparse autoencoder",
        objective=objective,
        parts={"retain": ArrayData({"inputs": states, "targets": torch.zeros(len(states), 1)})},
        passes=lambda _: (Pass("retain"),),
        epochs=epochs,
        batch_size=batch_size,
        optim=optim,
        after=after,
    )
    engine = replace(session.engine, activation_checkpointing=False)  # there are no blocks
    fitted = optimise(start, plan, Regression(), replace(session, engine=engine))
    assert isinstance(fitted, SparseAutoencoder)
    return fitted


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1."""
    lengths: Tensor = rows.norm(dim=-1, keepdim=True)
    return rows / lengths.clamp(min=1e-12)


def geometric_median(rows: Tensor, steps: int = 50) -> Tensor:
    """The point with the smallest sum of distances to rows ``(n, D)``, ``(D,)``, by Weiszfeld's iteration."""
    point: Tensor = rows.mean(0)
    for _ in range(steps):
        weights = 1 / (rows - point).norm(dim=1, keepdim=True).clamp(min=1e-6)
        point = (weights * rows).sum(0) / weights.sum()
    return point
