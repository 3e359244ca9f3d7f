"""Generative adversarial networks by name."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, DataError
from expunge.training.models import ModelSpec, models
from expunge.training.still import still


class Gan(nn.Module):
    """A generator and a discriminator, asked together as the task ``gan`` asks.

    Args:
        generator: ``(N, latent)`` to images.
        discriminator: images to a logit each, ``(N,)`` or ``(N, 1)``; above 0 is real.
        latent: numbers that the generator takes.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, latent: int) -> None:
        super().__init__()
        self.generator, self.discriminator, self.latent = generator, discriminator, latent

    def forward(self, inputs: Tensor, latents: Tensor) -> Tensor:
        """``(D(x), D(sg G(z)), D̄(G(z)))``, ``(N, 3)``.

        Raises:
            DataError: latents of another length than the generator takes.
        """
        if latents.shape[1] != self.latent:
            raise DataError(
                f"latents have {latents.shape[1]} numbers and the generator takes {self.latent}. Set the "
                f"task's latent to {self.latent}."
            )
        images = self.generator(latents)
        judged = [self.discriminator(inputs), self.discriminator(images.detach())]
        with still(self.discriminator) as judge:
            judged.append(judge(images))
        return torch.stack([logits.flatten() for logits in judged], 1)


@models.register("gan")
@dataclass(frozen=True, kw_only=True)
class GanSpec(ModelSpec):
    """A small DCGAN (Radford et al., 2016) on images in [−1, 1]; the network is a ``Gan``.

    The generator doubles a 4 × 4 map up to the image, by nearest neighbours and a convolution each time; the
    discriminator halves it back by strided convolutions. There is no batch norm: an example's numbers do not
    depend on its batch.

    Args:
        image_size: side of the square images, 4 times a power of two.
        in_channels: colours.
        latent: numbers in the generator's input; must be those of the task.
        width: channels at full resolution; each level further down has twice as many.
    """

    image_size: int = 16
    in_channels: int = 3
    latent: int = 32
    width: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = self.image_size // 4
        if self.image_size % 4 or levels < 2 or levels & (levels - 1):
            raise ConfigError(f"must be 8, 16, 32, …, got {self.image_size}.", "image_size")

    def network(self) -> nn.Module:
        halvings = (self.image_size // 4).bit_length() - 1
        widths = [self.width * 2**level for level in range(halvings)]
        top = widths[-1]
        up: list[nn.Module] = [nn.Linear(self.latent, top * 16), nn.Unflatten(1, (top, 4, 4)), nn.ReLU()]
        down: list[nn.Module] = []
        wide, narrow = [top, *reversed(widths)], [self.in_channels, *widths]
        for before, after in itertools.pairwise(wide):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        for before, after in itertools.pairwise(narrow):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        up += [nn.Conv2d(self.width, self.in_channels, 3, padding=1), nn.Tanh()]
        down += [nn.Flatten(), nn.Linear(top * 16, 1)]
        return Gan(nn.Sequential(*up), nn.Sequential(*down), self.latent)
