"""Real-valued targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks.base import Task, model_output, tasks


@tasks.register("regression")
@dataclass(frozen=True)
class Regression(Task):
    """Regression under a Gaussian of unit variance: half the squared error, summed over outputs.

    ``ℓ(x, y) = ½ ‖f(x) − y‖²``, so that ``−ℓ`` is the log-likelihood up to a constant. Batches hold
    ``inputs`` ``(N, …)`` and float ``targets`` ``(N,)`` or ``(N, D)``.

    Args:
        low, high: the range that uninformative targets are drawn from; without it no method that
            relabels can run.
    """

    low: float | None = None
    high: float | None = None

    score_name: ClassVar[str] = "exp(−loss)"

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ConfigError("give both low and high, or neither.", "low")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ConfigError(f"low={self.low} must be below high={self.high}.", "low")

    def check(self, data: Data, part: str) -> None:
        targets = data.column("targets")
        if not targets.is_floating_point():
            raise DataError(f"{part} targets must be floating-point numbers, got {targets.dtype}.")

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        predictions = model_output(model(batch["inputs"]))
        predictions = predictions.reshape(len(predictions), -1)
        width = batch["targets"].reshape(len(predictions), -1).shape[1]
        if predictions.shape[1] != width:
            raise DataError(f"the model predicts {predictions.shape[1]} values, the targets have {width}.")
        return predictions

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.divergence(batch["targets"].reshape(outputs.shape), outputs, batch)

    def divergence(
        self, reference: Tensor, outputs: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        """``‖a − b‖² / (2T)``: the divergence of two Gaussians of variance ``T``."""
        return (reference.float() - outputs.float()).square().sum(-1) / (2.0 * temperature)

    def relabel(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Targets drawn uniformly from ``[low, high]``."""
        if self.low is None or self.high is None:
            raise Unsupported(
                "Regression has no range to draw uninformative targets from. Give "
                "Regression(low=…, high=…), or use a method that does not relabel: grad_ascent, "
                "grad_diff, npo."
            )
        targets = batch["targets"]
        drawn = torch.rand(targets.shape, generator=generator) * (self.high - self.low) + self.low
        return {**batch, "targets": drawn.to(targets)}

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Targets drawn from Gaussians of unit variance around the predictions."""
        targets = batch["targets"]
        noise = torch.randn(outputs.shape, generator=generator).to(outputs.device)
        return {**batch, "targets": (outputs.detach().float() + noise).reshape(targets.shape).to(targets)}

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        return torch.exp(-self.loss(outputs, batch))
