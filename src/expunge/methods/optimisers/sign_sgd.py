"""Sign-SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from expunge.training.optim import Optim, optimisers


class SignDescent(torch.optim.Optimizer):
    """``θ ← θ − η sign(g + λ θ)``."""

    metric = None  # the step is no linear function of the gradient

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = parameter.grad.add(parameter, alpha=group["weight_decay"]).sign_()
                    parameter.add_(direction, alpha=-group["lr"])


@optimisers.register("sign_sgd")
@dataclass(frozen=True, kw_only=True)
class SignSGD(Optim):
    """Steps of equal size in every coordinate: ``θ ← θ − η sign(g + λ θ)``, without momentum.

    A zero gradient gives no step (``sign(0) = 0``). The derivative of the step with respect to the
    gradient is zero almost everywhere, which is what the search for hard forget sets needs.
    References: Bernstein et al., signSGD, ICML 2018, arXiv:1802.04434.
    """

    lr: float = 1e-3

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return SignDescent(parameters, lr=self.lr, weight_decay=self.weight_decay)
