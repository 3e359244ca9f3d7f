"""Denoising diffusion: predict the noise that was added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks.base import Task, model_output, tasks


@tasks.register("diffusion")
@dataclass(frozen=True)
class Diffusion(Task):
    """A denoising diffusion model with the linear noise schedule of DDPM (Ho et al., 2020).

    ``x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε``, ``ℓ = mean (ε_θ(x_t, t, c) − ε)²`` over the elements of one
    example. Batches hold ``inputs`` ``(N, …)`` and, for a conditional model, ``targets`` ``(N,)``,
    the condition; the model is called with ``(x_t, t, c)``.

    Args:
        timesteps: length of the noise schedule.
        conditions: number of conditions; ``None`` for an unconditional model.
        beta_start, beta_end: the ends of the linear schedule of variances.
    """

    timesteps: int = 1000
    conditions: int | None = None
    beta_start: float = 1e-4
    beta_end: float = 0.02

    random_outputs: ClassVar[bool] = True
    relabel_changes_inputs: ClassVar[bool] = True
    score_name: ClassVar[str] = "exp(−loss)"

    def __post_init__(self) -> None:
        if self.timesteps < 1:
            raise ConfigError(f"timesteps must be at least 1, got {self.timesteps}.", "timesteps")
        if self.conditions is not None and self.conditions < 1:
            raise ConfigError(f"conditions must be at least 1, got {self.conditions}.", "conditions")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError("needs 0 < beta_start <= beta_end < 1.", "beta_start")

    def check(self, data: Data, part: str) -> None:
        if self.conditions is None:
            return
        conditions = data.column("targets")
        bad = (conditions < 0) | (conditions >= self.conditions)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise DataError(
                f"{part} condition {int(conditions[row])} of example {int(data.ids[row])} is outside "
                f"0..{self.conditions - 1}."
            )

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        x = batch["inputs"]
        if generator is None:  # evaluation: each id always gets the same noise and timestep
            draws = [_draw(x.shape[1:], self.timesteps, torch.Generator().manual_seed(int(i) + 1))
                     for i in batch["ids"].tolist()]  # fmt: skip
            noise = torch.stack([n for n, _ in draws]).to(x)
            steps = torch.stack([t for _, t in draws]).to(x.device)
        else:
            noise = torch.randn(x.shape, generator=generator).to(x)
            steps = torch.randint(self.timesteps, (len(x),), generator=generator).to(x.device)
        betas = torch.linspace(self.beta_start, self.beta_end, self.timesteps, device=x.device)
        kept = torch.cumprod(1 - betas, 0)[steps].view(-1, *[1] * (x.ndim - 1))
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        return {**batch, "noisy": noisy, "noise": noise, "timesteps": steps}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        condition = batch["targets"] if self.conditions is not None else None
        predicted = model_output(model(batch["noisy"], batch["timesteps"], condition))
        return predicted.flatten(1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs.float() - batch["noise"].flatten(1)).square().mean(-1)

    def divergence(
        self, reference: Tensor, outputs: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        """``mean (a − b)² / T``: the task's squared error between two predictions of the noise."""
        return (reference.float() - outputs.float()).square().mean(-1) / temperature

    def relabel(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Another condition for the same noisy example, drawn uniformly from all of them."""
        if self.conditions is None:
            raise Unsupported(
                "an unconditional Diffusion model has no condition to replace. Use a method that does "
                "not relabel: grad_ascent, grad_diff, npo."
            )
        condition = batch["targets"]
        drawn = torch.randint(self.conditions, condition.shape, generator=generator)
        return {**batch, "targets": drawn.to(condition)}

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Noise drawn from Gaussians around the predictions, of the variance ``D / 2`` that the loss implies.

        ``ℓ = ‖f − ε‖² / D`` is the negative log-likelihood of that Gaussian, up to a constant.
        """
        drawn = torch.randn(outputs.shape, generator=generator).to(outputs.device)
        noise = outputs.detach().float() + (outputs.shape[1] / 2) ** 0.5 * drawn
        return {**batch, "noise": noise.view_as(batch["noise"]).to(batch["noise"])}

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        return torch.exp(-self.loss(outputs, batch))

    def groups(self, data: Data) -> Tensor:
        if self.conditions is None:
            return super().groups(data)
        return data.column("targets").long()


def _draw(shape: torch.Size, timesteps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, generator=generator), torch.randint(timesteps, (), generator=generator)
