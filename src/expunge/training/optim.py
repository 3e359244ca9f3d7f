"""How the step is taken: the optimisers and their learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError
from expunge.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Optim(ABC):
    """An optimiser and its schedule.

    Args:
        lr: learning rate at its highest.
        weight_decay: decay coefficient, with the meaning that the optimiser gives it.
        schedule: ``constant``; ``cosine`` or ``linear`` down to 0; ``exponential``: ``lr · decay^t`` at the
            fraction ``t`` of the steps after the warm-up; ``multistep``: × 0.1 at each of ``milestones``.
        milestones: fractions of all steps, for ``multistep``.
        decay: the fraction of ``lr`` that ``exponential`` ends at. A factor ``γ`` for each of ``E`` epochs
            is ``decay = γ^E``, falling within the epochs as well.
        warmup: fraction of all steps over which the rate rises linearly from 0.
        clip: the largest norm of the whole gradient; larger ones are scaled down to it.
    """

    lr: float = 0.01
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear", "exponential", "multistep"] = "constant"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.01
    warmup: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"must be above 0, got {self.lr}.", "lr")
        if self.weight_decay < 0:
            raise ConfigError(f"must not be negative, got {self.weight_decay}.", "weight_decay")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"is a fraction of lr in (0, 1], got {self.decay}.", "decay")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"is a fraction of all steps in [0, 1), got {self.warmup}.", "warmup")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"must be above 0, got {self.clip}.", "clip")

    @abstractmethod
    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over these parameters."""

    def factor(self, index: int, total: int) -> float:
        """What the learning rate is multiplied with at step ``index`` of ``total``."""
        done = index / max(total, 1)
        if done < self.warmup:
            return (index + 1) / (self.warmup * total + 1)
        rest = (done - self.warmup) / (1 - self.warmup)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * rest))
        if self.schedule == "linear":
            return 1 - rest
        if self.schedule == "exponential":
            return math.pow(self.decay, rest)
        if self.schedule == "multistep":
            return 0.1 ** sum(done >= milestone for milestone in self.milestones)
        return 1.0


class ForwardOnly(Optim):
    """An optimiser whose gradients are estimated from the values of forward passes, not by autograd."""

    @abstractmethod
    def estimate(
        self,
        evaluate: Callable[[], dict[str, Tensor]],
        terms: Mapping[str, Tensor],
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        index: int,
    ) -> dict[str, dict[str, Tensor]]:
        """A gradient of each term for each parameter.

        Args:
            evaluate: the terms at the parameters as they stand now, on the same batch and draws. Every
                parameter must be back where it was when this method returns.
            terms: their values at the parameters as they were handed over.
            optimizer: for what is to be kept between steps, in ``optimizer.state``.
            index: number of the step; the parts of one batch (``Engine.accumulate``) share it.
        """


class Curved(Optim):
    """An optimiser whose step depends on the curvature of the loss as well as on the gradient."""

    @abstractmethod
    def samples(self, index: int) -> bool:
        """Whether step ``index`` needs the gradient of the loss for labels that the model draws itself.

        It costs a second backward pass through the forward pass of the step.
        """

    @abstractmethod
    def observe(
        self,
        optimizer: torch.optim.Optimizer,
        index: int,
        examples: int,
        sampled: Mapping[nn.Parameter, Tensor],
    ) -> None:
        """Takes up the curvature; called before each step, when every parameter has its gradient.

        Args:
            optimizer: what is to be kept between steps goes into ``optimizer.state``.
            index: number of the step.
            examples: ``n``, those in the step's batches.
            sampled: ``Σ_i √(c_i / n) ∇ℓ_i(ŷ_i)`` over the step's examples with ``ŷ_i`` drawn by the model
                and ``c_i`` the number of labels of an example. The mean of its square over the draws is
                the Gauss-Newton diagonal of the mean loss. Empty where ``samples`` said no.
        """


optimisers: Registry[Optim] = Registry(
    "optimiser",
    Optim,  # type: ignore[type-abstract]
    ("expunge.training.optim", "expunge.methods.optimisers"),
)


@optimisers.register("sgd")
@dataclass(frozen=True, kw_only=True)
class SGD(Optim):
    """Stochastic gradient descent with momentum: ``v ← μ v + g + λ θ``, ``θ ← θ − η v``."""

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"must be in [0, 1), got {self.momentum}.", "momentum")
        if self.nesterov and self.momentum == 0:
            raise ConfigError("needs a momentum above 0.", "nesterov")

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@optimisers.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(Optim):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"both must be in [0, 1), got {self.betas}.", "betas")

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.AdamW(  # fused: several times as fast on a CPU, and without temporary copies
            parameters,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )
        made.register_step_pre_hook(_lay_out)
        return made


def _lay_out(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Gives every gradient its parameter's strides: a fused step reads both as they lie in memory."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
