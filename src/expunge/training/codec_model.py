"""The closed-form codec as an autoencoder of diffusers. Importing this module imports diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from expunge.data.patch_codec import PatchCodecSpec, basis, decode, encode


class PatchVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """``data.patch_codec`` in the place of a Stable Diffusion pipeline's autoencoder; nothing is trained.

    ``encode(x).latent_dist`` is a point: ``mode()`` and ``sample()`` are the same. As with any autoencoder
    of diffusers, a denoiser works on ``encode(x).latent_dist.mode() · config.scaling_factor``, and images
    are ``(N, 3, H, W)`` in [−1, 1]. ``config.block_out_channels`` has as many entries as make pipelines take
    ``patch`` for the factor between pixels and latents.

    Args:
        patch, channels: as ``PatchCodecSpec``.
        latent_channels, scaling_factor, block_out_channels: follow from these two; they are arguments for
            diffusers, which writes them into the configuration and reads them from there.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch: int = 2,
        channels: int = 6,
        latent_channels: int | None = None,
        scaling_factor: float | None = None,
        block_out_channels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        spec = PatchCodecSpec(patch=patch, channels=channels)
        self.register_to_config(
            latent_channels=channels,
            scaling_factor=spec.scaling_factor,
            block_out_channels=(channels,) * patch.bit_length(),
        )
        self.register_buffer("basis", basis(patch, channels).float())

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[object]:
        mean = encode(x, self.config.patch, self.config.channels)
        found = DiagonalGaussianDistribution(
            torch.cat([mean, mean.new_zeros(mean.shape)], 1), deterministic=True
        )
        return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        images = decode(z, self.config.patch)
        return DecoderOutput(sample=images) if return_dict else (images,)

    def forward(self, sample: Tensor) -> DecoderOutput:
        """Encoded and decoded again."""
        encoded: Any = self.encode(sample)
        return self.decode(encoded.latent_dist.mode())
