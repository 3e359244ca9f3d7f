"""Sophia: signed momentum, damped where the loss is curved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError
from expunge.training.optim import Curved, optimisers


class ClippedNewton(torch.optim.Optimizer):
    """``m ← β₁ m + (1 − β₁) g``, then ``θ ← (1 − ηλ) θ − η sign(m) min(|m| / max(ρ h, ε), 1)``.

    ``h`` is ``state["curvature"]``, kept by whoever drives the optimiser and 0 until it is first set.
    """

    metric = None  # the step is no linear function of the gradient

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        beta: float,
        rho: float,
        eps: float,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "beta": beta, "rho": rho, "eps": eps}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum: Tensor = state["momentum"].lerp_(parameter.grad, 1 - group["beta"])
                curvature = state.get("curvature", torch.zeros_like(momentum))
                ratio = momentum.abs() / (group["rho"] * curvature).clamp(min=group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcmul_(momentum.sign(), ratio.clamp_(max=1), value=-group["lr"])


@optimisers.register("sophia")
@dataclass(frozen=True, kw_only=True)
class Sophia(Curved):
    """Newton-like steps with a diagonal curvature, none longer than the learning rate in any weight.

    ``m ← β₁ m + (1 − β₁) g``; every ``interval`` steps ``h ← β₂ h + (1 − β₂) ĥ``;
    ``θ ← (1 − ηλ) θ − η sign(m) min(|m| / max(ρ h, ε), 1)``, so that ``|Δθ| ≤ η (1 + λ |θ|)``. With any
    objective it is SOUL, second-order unlearning. The curvature ``ĥ`` is

    - ``gauss_newton_bartlett``: ``B ĝ²`` with ``ĝ`` the gradient of the mean loss over the ``B`` examples
      of the step for labels that the model draws itself; its mean is the Gauss-Newton diagonal. For
      a language model each labelled token is a draw and ``B`` counts them, however they are spread.
    - ``squared``: ``B g²`` of the objective's own gradient, after modifiers and clipping. Then
      ``|m| / ρh ≈ 1 / (ρ B |g|)``: nearly sign descent until gradients are larger than ``1 / ρB``.

    Args:
        lr: the largest step of a weight. It is that of most weights at first, whatever the gradients.
        betas: ``β₁, β₂``.
        rho: ``ρ``; smaller values let more weights be clipped.
        eps: ``ε``.
        hessian: the estimate of the curvature.
        interval: steps from one estimate to the next.

    Cost: two copies of the parameters; with ``gauss_newton_bartlett`` a second backward pass through the
        same forward pass at every ``interval``-th step.
    Differs: the curvature is that of the task's loss on all examples of the step, forget and retain,
        whatever signs and weights the objective gives them, so that it is never negative (our
        choice). The authors' code uses ``squared`` at every step (``interval=1``) with ``B`` fixed
        at 5120 whatever the batch, and adds the gradient to ``m`` twice a step: here ``B`` is the step's
        own and ``m`` is updated once. They add ``ε`` to the denominator; the paper's maximum is used.
    References: Liu et al., Sophia, ICLR 2024, arXiv:2305.14342; Jia et al., SOUL, EMNLP 2024,
        arXiv:2404.18239, whose ``β``, ``ρ`` and ``λ`` are the defaults.
    """

    lr: float = 1e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    rho: float = 0.04
    eps: float = 1e-15
    hessian: Literal["gauss_newton_bartlett", "squared"] = "gauss_newton_bartlett"
    interval: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"both must be in [0, 1), got {self.betas}.", "betas")
        for name in ("rho", "eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        if self.interval < 1:
            raise ConfigError(f"must be at least 1, got {self.interval}.", "interval")

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return ClippedNewton(
            parameters,
            lr=self.lr,
            weight_decay=self.weight_decay,
            beta=self.betas[0],
            rho=self.rho,
            eps=self.eps,
        )

    def samples(self, index: int) -> bool:
        return self.hessian == "gauss_newton_bartlett" and index % self.interval == 0

    def observe(
        self,
        optimizer: torch.optim.Optimizer,
        index: int,
        examples: int,
        sampled: Mapping[nn.Parameter, Tensor],
    ) -> None:
        if index % self.interval:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                estimate = sampled.get(parameter)
                if self.hessian == "squared" and parameter.grad is not None:
                    estimate = examples**0.5 * parameter.grad
                if estimate is not None:
                    state = optimizer.state[parameter]
                    known = state.get("curvature", torch.zeros_like(parameter))
                    state["curvature"] = known.lerp(estimate.square(), 1 - self.betas[1]).detach()
