"""A closed-form image codec: the lowest frequencies of small patches, without training and without data."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.errors import ConfigError, DataError

COLOURS = 3

_CHROMA_LATER = 1.5


@dataclass(frozen=True, kw_only=True)
class PatchCodecSpec:
    """Latents from the discrete cosine transform of ``patch`` × ``patch`` pixels in luma and two chromas.

    ``z = s B x`` and ``x ≈ Bᵀ z / s``, where the rows of ``B`` ``(channels, 3 patch²)`` are orthonormal and
    ``s = 1 / patch`` brings latents to the scale of pixels. With ``channels = 3 patch²`` nothing is lost.

    Args:
        patch: side of a patch, a power of two; 1 only rotates colours.
        channels: coefficients that are kept of each patch, from the lowest frequency up, 3..3 patch².

    Raises:
        ConfigError: a patch that is no power of two, or channels outside of their range.
    """

    patch: int = 2
    channels: int = 6

    def __post_init__(self) -> None:
        if self.patch < 1 or self.patch & (self.patch - 1):
            raise ConfigError(f"must be a power of two, got {self.patch}.", "patch")
        if not COLOURS <= self.channels <= COLOURS * self.patch**2:
            raise ConfigError(
                f"must be {COLOURS}..{COLOURS * self.patch**2} for patches of {self.patch} pixels, got "
                f"{self.channels}.",
                "channels",
            )

    @property
    def scaling_factor(self) -> float:
        """``s``: what encoded images are multiplied by, as the field of diffusers' autoencoders."""
        return 1 / self.patch

    def latents(self, images: Tensor) -> Tensor:
        """What a denoiser works on: ``s · encode(images)``."""
        return self.scaling_factor * encode(images, self.patch, self.channels)

    def images(self, latents: Tensor) -> Tensor:
        """``decode(latents / s)``, not clipped."""
        return decode(latents / self.scaling_factor, self.patch)


def encode(images: Tensor, patch: int, channels: int) -> Tensor:
    """The first ``channels`` coefficients of every patch.

    Shapes: images ``(N, 3, H, W)`` in [−1, 1] to ``(N, channels, H / patch, W / patch)``.

    Raises:
        DataError: images of another shape, or whose sides are no multiple of ``patch``.
    """
    if images.ndim != 4 or images.shape[1] != COLOURS or images.shape[2] % patch or images.shape[3] % patch:
        raise DataError(
            f"the codec needs images (N, 3, H, W) with sides that are multiples of {patch}, got "
            f"{tuple(images.shape)}."
        )
    pixels = torch.nn.functional.pixel_unshuffle(images, patch)
    return torch.einsum("kp,nphw->nkhw", basis(patch, channels).to(pixels), pixels)


def decode(latents: Tensor, patch: int) -> Tensor:
    """The images with these coefficients, and zero for those that were not kept.

    Shapes: ``(N, channels, h, w)`` to ``(N, 3, patch · h, patch · w)``; not clipped to [−1, 1].
    """
    matrix = basis(patch, latents.shape[1]).to(latents)
    return torch.nn.functional.pixel_shuffle(torch.einsum("kp,nkhw->nphw", matrix, latents), patch)


@functools.lru_cache(maxsize=16)
def basis(patch: int, channels: int) -> Tensor:
    """``B``, ``(channels, 3 patch²)`` float64 with orthonormal rows, a pixel's colour running slowest.

    Order: the means of luma and both chromas; then by frequency ``u + v``, where the chromas of frequency
    ``f`` follow luma of ``f + 1``; horizontal waves before vertical ones.
    """
    luma, red_blue, green = [1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]
    colours = torch.tensor([luma, red_blue, green], dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    places = torch.arange(patch, dtype=torch.float64)
    waves = torch.cos(math.pi * places[:, None] * (2 * places + 1) / (2 * patch))
    waves /= waves.norm(dim=1, keepdim=True)
    order = sorted(
        (_rank(u + v, colour), colour, max(u, v), v, u)
        for u, v, colour in itertools.product(range(patch), range(patch), range(COLOURS))
    )
    rows = [
        torch.einsum("c,v,u->cvu", colours[colour], waves[v], waves[u]).flatten()
        for _, colour, _, v, u in order[:channels]
    ]
    return torch.stack(rows)


def _rank(frequency: int, colour: int) -> float:
    """Where a coefficient stands: colours vary less over a patch than light does."""
    return frequency + _CHROMA_LATER if colour and frequency else frequency
