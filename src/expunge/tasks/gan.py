"""Adversarial generation: a generator and a discriminator in one model, trained against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from expunge.data.arrays import Batch
from expunge.errors import ConfigError, Unsupported
from expunge.tasks.base import Task, tasks


@tasks.register("gan")
@dataclass(frozen=True)
class GAN(Task):
    """A generative adversarial network (Goodfellow et al., 2014) with the non-saturating logistic loss.

    ``ℓ = s(−D(x)) + s(D(sg G(z))) + s(−D̄(G(z)))`` with ``s = log(1 + e^·)``; ``sg`` gives no gradient to
    the generator and ``D̄`` none to the discriminator's weights. The first two terms are the
    discriminator's loss in nats, the third is the generator's: one sum, whose gradient is each network's of
    its own loss, so that one optimiser moves both, at the same time and with one learning rate.

    Batches hold ``inputs`` ``(N, …)``; ``z`` is drawn for each. The model is called with ``(x, z)`` and
    answers ``(D(x), D(sg G(z)), D̄(G(z)))``, ``(N, 3)``, as ``training.gan_models.Gan`` does.

    Args:
        latent: numbers in ``z``, which is standard normal.
    """

    latent: int = 32

    random_outputs: ClassVar[bool] = True
    score_name: ClassVar[str] = "D(G(z))"

    def __post_init__(self) -> None:
        if self.latent < 1:
            raise ConfigError(f"must be at least 1, got {self.latent}.", "latent")

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        like = batch["inputs"]
        if generator is None:  # evaluation: each id always gets the same latent
            rows = [self._row(int(i) + 1) for i in batch["ids"].tolist()]
            latents = torch.stack(rows)
        else:
            latents = torch.randn(len(like), self.latent, generator=generator)
        return {**batch, "latents": latents.to(like)}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        found = model(batch["inputs"], batch["latents"])
        if not isinstance(found, Tensor) or found.shape != (len(batch["inputs"]), 3):
            raise Unsupported(
                "the model does not answer a GAN's three numbers for each example. Give a Gan(generator, "
                "discriminator, latent) of training.gan_models."
            )
        return found

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        signs = outputs.new_tensor([-1.0, 1.0, -1.0]).float()
        return softplus(signs * outputs.float()).sum(-1)

    def divergence(
        self, reference: Tensor, outputs: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        """``mean (a − b)² / T`` of the three numbers."""
        return (reference.float() - outputs.float()).square().mean(-1) / temperature

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The probability that the discriminator gives to what is generated being real."""
        return outputs[:, 1].float().sigmoid()

    def _row(self, seed: int) -> Tensor:
        return torch.randn(self.latent, generator=torch.Generator().manual_seed(seed))
