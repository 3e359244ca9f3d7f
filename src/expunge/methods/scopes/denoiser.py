"""The parts of a denoiser that concept erasure chooses between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from expunge.errors import Unsupported
from expunge.training.cross_attention import cross_attention
from expunge.training.scope import Scope, scopes

_EDGES = ("time_proj", "time_embedding", "conv_norm_out", "conv_out")
"""Of diffusers' U-Nets: what stays out of the rest, the embedding of time and the output layers."""


@scopes.register("denoiser")
@dataclass(frozen=True, kw_only=True)
class Denoiser(Scope):
    """A part of the network that removes noise; text encoder and autoencoder stay as they are.

    Args:
        part: ``cross_attention``: all of the layers that attend to the caption (ESD-x); ``key_value``: of
            those the matrices of keys and values; ``rest``: all other layers but the embedding of time and
            the output layers (ESD-u); ``all``. A model without a ``unet`` is a denoiser as a whole.

    References: the parameter sets of Gandikota et al., Erasing Concepts from Diffusion Models, ICCV 2023,
        arXiv:2303.07345 (``xattn``, ``noxattn``, ``full``), and of Kumari et al., Ablating Concepts in
        Text-to-Image Diffusion Models, ICCV 2023, arXiv:2303.13516.
    """

    part: Literal["cross_attention", "key_value", "rest", "all"] = "cross_attention"

    def names(self, model: nn.Module) -> list[str]:
        inside = "unet." if isinstance(getattr(model, "unet", None), nn.Module) else ""
        known = [name for name, p in model.named_parameters() if p.requires_grad and name.startswith(inside)]
        if self.part == "all":
            chosen = known
        elif self.part == "rest":
            attending = tuple(f"{path}." for path, _ in cross_attention(model))
            edges = tuple(f"{inside}{edge}." for edge in _EDGES)
            chosen = [name for name in known if not name.startswith((*attending, *edges))]
        else:
            ends = ("",) if self.part == "cross_attention" else ("to_k.", "to_v.")
            wanted = tuple(f"{path}.{end}" for path, _ in cross_attention(model) for end in ends)
            chosen = [name for name in known if name.startswith(wanted)]
        if not chosen:
            raise Unsupported(
                f"no parameter of the denoiser's part '{self.part}' may move. Set another part."
            )
        return chosen
