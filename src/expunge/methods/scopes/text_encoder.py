"""The parts of the text encoder of a text-to-image model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from expunge.errors import ConfigError, Unsupported
from expunge.training.blocks import blocks, feed_forwards
from expunge.training.scope import Scope, scopes

Part = Literal["feed_forward", "last_attention", "all"]


@scopes.register("text_encoder")
@dataclass(frozen=True, kw_only=True)
class TextEncoder(Scope):
    """Parts of the network that reads the caption; the denoiser and the autoencoder stay as they are.

    They are found by structure, whatever the layers are called and however many there are.

    Args:
        parts: any of ``feed_forward``: the feed-forward layer of every block; ``last_attention``: the
            attention of the last block; ``all``: the whole text encoder.

    Raises:
        Unsupported: a model without a text encoder, or none of its parameters may move.

    References: the parameters of Fuchi and Takagi, Erasing Concepts from Text-to-Image Diffusion Models with
        Few-shot Unlearning, BMVC 2024, arXiv:2405.07288, are the first two.
    """

    parts: tuple[Part, ...] = ("feed_forward", "last_attention")

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("names no part.", "parts")

    def names(self, model: nn.Module) -> list[str]:
        encoder = getattr(model, "text_encoder", None)
        if not isinstance(encoder, nn.Module):
            raise Unsupported(
                f"{type(model).__name__} has no text encoder. Use a text-to-image model, or another scope."
            )
        prefixes = tuple(f"text_encoder.{path}" for path in self._paths(encoder))
        found = [n for n, p in model.named_parameters() if p.requires_grad and n.startswith(prefixes)]
        if not found:
            raise Unsupported("no parameter of these parts of the text encoder may move. Set other parts.")
        return found

    def _paths(self, encoder: nn.Module) -> list[str]:
        if "all" in self.parts:
            return [""]
        feeding = [f"{path}." for path, _ in feed_forwards(encoder)]
        chosen = feeding if "feed_forward" in self.parts else []
        if "last_attention" in self.parts:
            name, block = blocks(encoder)[-1]
            others = [(f"{name}.{key}.", part) for key, part in block.named_children()]
            chosen = chosen + [path for path, part in others if path not in feeding and _mixes(part)]
        return chosen


def _mixes(part: nn.Module) -> bool:
    """Whether it has matrices, as attention has and a norm has not."""
    return any(isinstance(module, nn.Linear) for module in part.modules())
