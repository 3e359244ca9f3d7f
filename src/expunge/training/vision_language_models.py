"""Vision-language models by name: a small LLaVA from its sizes, and any Hugging Face checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from expunge.errors import CheckpointError, ConfigError, MissingExtra, Unsupported
from expunge.training.models import ModelSpec, models
from expunge.training.pretrained import pretrained


def image_tokens(config: Any) -> int:
    """How many tokens a picture takes in the prompt of a LLaVA: its patches.

    ``⌊size / patch⌋²``, and one more where the class vector is kept (``vision_feature_select_strategy``
    ``full``).

    Args:
        config: of the model, ``model.config``.

    Raises:
        Unsupported: a configuration without a vision tower of square pictures and patches.
    """
    vision = getattr(config, "vision_config", None)
    size, patch = (getattr(vision, name, None) for name in ("image_size", "patch_size"))
    if not isinstance(size, int) or not isinstance(patch, int):
        raise Unsupported(
            f"{type(config).__name__} does not say how many patches a picture has. Use a model of LLaVA's "
            "kind, or count the image tokens that its processor inserts."
        )
    return (size // patch) ** 2 + (getattr(config, "vision_feature_select_strategy", "default") == "full")


@models.register("llava")
@dataclass(frozen=True, kw_only=True)
class Llava(ModelSpec):
    """LLaVA with random weights: a CLIP vision transformer, two linear layers, a Llama.

    Called with ``input_ids`` ``(N, T)``, ``attention_mask`` and ``pixel_values`` ``(N, C, S, S)``; its output
    object has ``.logits`` ``(N, T, vocabulary)``. In the input the vectors of the patches stand in place of
    the ``image_tokens`` image tokens. Nothing is dropped out.

    Args:
        vocabulary: number of tokens, the image token among them.
        image_token: its number.
        image_size, patch_size: sides of the square picture and its patches, in pixels.
        vision_width, vision_layers, vision_heads: of the vision transformer.
        vision_mlp, mlp: widths inside the feed-forward layers; ``None`` is four times the width.
        context: tokens of the longest example, those of the picture among them.
        tied: whether the output layer shares the embedding's weights.

    Raises:
        ConfigError: a size below 1, an image token outside the vocabulary, a picture that is not a whole
            number of patches or fills the context, or a width that does not divide among the heads.
        MissingExtra: transformers is not installed.
    """

    vocabulary: int
    image_token: int
    image_size: int = 16
    patch_size: int = 4
    in_channels: int = 3
    vision_width: int = 32
    vision_layers: int = 2
    vision_heads: int = 4
    vision_mlp: int | None = None
    width: int = 64
    layers: int = 2
    heads: int = 4
    mlp: int | None = None
    context: int = 128
    tied: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image_token < self.vocabulary:
            raise ConfigError(
                f"must be below vocabulary {self.vocabulary}, got {self.image_token}.", "image_token"
            )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"must divide image_size {self.image_size}, got {self.patch_size}.", "patch_size"
            )
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"must be a multiple of {2 * self.heads}, twice the heads, got {self.width}.", "width"
            )
        if self.vision_width % self.vision_heads:
            raise ConfigError(
                f"must be a multiple of the {self.vision_heads} heads, got {self.vision_width}.",
                "vision_width",
            )
        if (self.image_size // self.patch_size) ** 2 >= self.context:
            raise ConfigError(
                f"must be above the {(self.image_size // self.patch_size) ** 2} tokens of a picture, got "
                f"{self.context}.",
                "context",
            )

    def config(self) -> Any:
        """The configuration of transformers.

        Raises:
            MissingExtra: transformers is not installed.
        """
        try:
            from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
        except ImportError:
            raise MissingExtra("model 'llava'", "llm") from None
        vision = CLIPVisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=self.vision_mlp or 4 * self.vision_width,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            num_channels=self.in_channels,
            image_size=self.image_size,
            patch_size=self.patch_size,
            projection_dim=self.vision_width,
            attention_dropout=0.0,
        )
        text = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.mlp or 4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=self.tied,
            attention_dropout=0.0,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        )
        return LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=self.image_token,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
            tie_word_embeddings=self.tied,
        )

    def network(self) -> nn.Module:
        config = self.config()
        from transformers import LlavaForConditionalGeneration

        model: nn.Module = LlavaForConditionalGeneration(config).to(torch.float32)
        return model


@models.register("vision_language")
@dataclass(frozen=True, kw_only=True)
class PretrainedVisionLanguage(ModelSpec):
    """A vision-language model from a folder that ``save_pretrained`` wrote, with the weights in it.

    Every training starts from these weights, that of the original as that of the retrained ones: give the
    model as it was before it saw what is to be forgotten.

    Args:
        path: the folder; nothing is downloaded, and no code in it is run.
        dtype: of the weights.

    Raises:
        CheckpointError: as ``pretrained``, or a folder that holds no model of pictures and text.
        MissingExtra: transformers is not installed.
    """

    path: Path
    dtype: Literal["float32", "bfloat16"] = "float32"

    def network(self) -> nn.Module:
        if not self.path.is_dir():
            raise CheckpointError(
                f"'{self.path}' is not a folder. Give one that save_pretrained wrote; a model of the Hugging "
                "Face Hub is fetched by 'hf download NAME --local-dir FOLDER'."
            )
        found = pretrained(
            self.path, causal=True, dtype=torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
        )
        if getattr(found.config, "vision_config", None) is None:
            raise CheckpointError(
                f"'{self.path}' holds {type(found).__name__}, which sees no pictures. Use kind causal_lm."
            )
        return found
