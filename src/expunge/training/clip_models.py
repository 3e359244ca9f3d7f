"""Pairs of an image and a text encoder, in Euclidean and in hyperbolic space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from expunge.errors import ConfigError, MissingExtra
from expunge.training import hyperbolic
from expunge.training.models import ModelSpec, models


class ClipPair(nn.Module):
    """``CLIPModel`` of transformers, asked how well images ``(N, …)`` and captions ``(N, T)`` match.

    ``S_ij = e^s cos(image_i, caption_j)``, ``(N, N)``. What comes after a caption's end token is not read.
    """

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def image_features(self, images: Tensor) -> Tensor:
        """``(N, D)``, of any length."""
        clip: Any = self.clip
        return _features(clip.get_image_features(pixel_values=images))

    def text_features(self, input_ids: Tensor) -> Tensor:
        """``(N, D)``, of any length."""
        clip: Any = self.clip
        return _features(clip.get_text_features(input_ids=input_ids))

    def forward(self, images: Tensor, input_ids: Tensor) -> Tensor:
        shown, told = self.image_features(images), self.text_features(input_ids)
        scale = cast(Tensor, self.clip.logit_scale).exp()
        return scale * normalize(shown, dim=-1) @ normalize(told, dim=-1).T


class HyperbolicPair(nn.Module):
    """A pair of encoders whose features are tangent vectors at the root of a hyperbolic space.

    ``x = exp_0(α f)``, ``S_ij = −e^s d(image_i, caption_j)``. The curvature ``−c``, ``α`` of images and of
    captions and ``s`` are learnt; ``c`` stays in [0.1, 10] and ``α ≤ 1``.

    Args:
        pair: with ``image_features`` and ``text_features``.
        width: ``D``; ``α`` starts at ``D^(−1/2)``.
    """

    def __init__(self, pair: nn.Module, width: int) -> None:
        super().__init__()
        self.pair = pair
        like = next(pair.parameters())
        self.log_curvature = nn.Parameter(like.new_zeros(()))
        self.log_image = nn.Parameter(like.new_full((), -0.5 * math.log(width)))
        self.log_text = nn.Parameter(like.new_full((), -0.5 * math.log(width)))
        self.log_scale = nn.Parameter(like.new_full((), math.log(1 / 0.07)))
        self.image_bound: Tensor
        self.text_bound: Tensor
        self.register_buffer("image_bound", like.new_zeros(()))
        self.register_buffer("text_bound", like.new_zeros(()))

    @property
    def curvature(self) -> Tensor:
        """``c``."""
        return self.log_curvature.exp().clamp(0.1, 10.0)

    @property
    def scale(self) -> Tensor:
        """``e^s``, at most 100."""
        return self.log_scale.exp().clamp(max=100.0)

    def embed_images(self, images: Tensor, *, redirect: bool = False) -> Tensor:
        """Points ``(N, D)``; redirected ones are at most the safe images' bound from the root."""
        pair: Any = self.pair
        return self._placed(pair.image_features(images), self.log_image, self.image_bound, redirect)

    def embed_texts(self, input_ids: Tensor, *, redirect: bool = False) -> Tensor:
        """Points ``(N, D)``; redirected ones are at most the safe captions' bound from the root."""
        pair: Any = self.pair
        return self._placed(pair.text_features(input_ids), self.log_text, self.text_bound, redirect)

    def match(self, shown: Tensor, told: Tensor) -> Tensor:
        """``S`` of embedded images ``(N, D)`` and captions ``(M, D)``, ``(N, M)``."""
        return -self.scale * hyperbolic.distances(shown, told, self.curvature)

    def forward(self, images: Tensor, input_ids: Tensor) -> Tensor:
        return self.match(self.embed_images(images), self.embed_texts(input_ids))

    def _placed(self, features: Tensor, log_alpha: Tensor, bound: Tensor, redirect: bool) -> Tensor:
        x = hyperbolic.exp_root(features.float() * log_alpha.exp().clamp(max=1.0), self.curvature)
        return hyperbolic.drawn_in(x, bound, self.curvature) if redirect else x


@models.register("clip_pair")
@dataclass(frozen=True, kw_only=True)
class ClipPairSpec(ModelSpec):
    """A small ``CLIPModel`` with random weights; the network is a ``ClipPair``.

    Args:
        vocabulary: tokens of the tokenizer.
        context: tokens of a caption.
        end: the end-of-text token, where a caption is read; by default the last one.
        image_size, patch: sides in pixels.
        in_channels: colours.
        width: of both encoders and of their features.
        layers, heads: of both.

    Raises:
        MissingExtra: transformers is not installed.
    """

    vocabulary: int
    context: int = 16
    end: int | None = None
    image_size: int = 16
    patch: int = 4
    in_channels: int = 3
    width: int = 32
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch:
            raise ConfigError(
                f"must be a multiple of patch={self.patch}, got {self.image_size}.", "image_size"
            )
        if self.width % self.heads:
            raise ConfigError(f"must be a multiple of heads={self.heads}, got {self.width}.", "width")

    def network(self) -> nn.Module:
        if find_spec("transformers") is None:
            raise MissingExtra("model 'clip_pair'", "llm")
        from transformers import CLIPConfig, CLIPModel

        common = {
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "projection_dim": self.width,
        }
        end = self.vocabulary - 1 if self.end is None else self.end
        text = {"vocab_size": self.vocabulary, "max_position_embeddings": self.context, "eos_token_id": end,
                "bos_token_id": None, "pad_token_id": None}  # fmt: skip
        vision = {"image_size": self.image_size, "patch_size": self.patch, "num_channels": self.in_channels}
        config = CLIPConfig(
            text_config={**common, **text}, vision_config={**common, **vision}, projection_dim=self.width
        )
        return ClipPair(CLIPModel(config))


def _features(found: Any) -> Tensor:
    """The features themselves, which transformers 5 puts into an output."""
    return found if isinstance(found, torch.Tensor) else cast(Tensor, found.pooler_output)
