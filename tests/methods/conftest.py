"""A linear regression whose gradients fit on one line, and a session for it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from expunge.data import Split
from expunge.tasks import Regression
from expunge.training.session import Session


@dataclass(frozen=True)
class Linear:
    """``f(x) = wᵀx`` with loss ``½ (wᵀx − y)²``; ``forget`` and ``retain`` are ``(X, y)``."""

    model: nn.Module
    task: Regression
    split: Split
    forget: tuple[Tensor, Tensor]
    retain: tuple[Tensor, Tensor]
    session: Session = Session(seed=0)

    @property
    def start(self) -> Tensor:
        return self.model.weight.detach()[0]

    def gradient(self, weight: Tensor, part: str) -> Tensor:
        """``Xᵀ(Xw − y) / n``."""
        X, y = getattr(self, part)
        return X.T @ (X @ weight - y[:, 0]) / len(X)

    def run(self, method: object, session: Session | None = None) -> Tensor:
        """The weights that a method ends at."""
        result = method.unlearn(self.model, self.split, self.task, session or self.session)
        return result.weight.detach()[0]


@pytest.fixture
def linear() -> Linear:
    draws = torch.Generator().manual_seed(3)
    X, y = torch.randn(20, 3, generator=draws), torch.randn(20, 1, generator=draws)
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -1.0, 2.0]]))
    split = Split.from_ids((X, y), range(6))
    return Linear(model, Regression(low=-1.0, high=1.0), split, (X[:6], y[:6]), (X[6:], y[6:]))
