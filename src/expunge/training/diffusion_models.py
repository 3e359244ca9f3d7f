"""Denoising diffusion models by name: of captions and of classes, from their sizes, and any pipeline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from expunge.data.download import found_folder
from expunge.data.patch_codec import PatchCodecSpec
from expunge.data.pipeline_folder import INDEX
from expunge.errors import CheckpointError, ConfigError, ExpungeError
from expunge.training.denoisers import (
    ClassDenoiser,
    Companions,
    TextToImage,
    check_diffusers,
    check_parts,
)
from expunge.training.models import ModelSpec, models

__all__ = [
    "ClassDenoiser",
    "ClassDenoiserSpec",
    "Companions",
    "PipelineSpec",
    "TextToImage",
    "TextToImageSpec",
    "pretrained_pipeline",
]

CODEC = "expunge.training.codec_model"
"""Where ``PatchVAE`` is."""


@dataclass(frozen=True, kw_only=True)
class DenoiserSpec(ModelSpec):
    """A U-Net of diffusers with random weights; attention only where there are few places to attend to.

    Args:
        image_size: side of the square images in pixels.
        channels: of each level, from the finest, at full resolution, to the coarsest, halved each time.
        layers: residual blocks of each level on the way down.
        heads: of every attention layer.
        attention: the largest side, in places, at which there is attention.
        groups: of the group normalisations.

    Raises:
        ConfigError: an image that cannot be halved so often, channels that are not of groups and heads, or
            no level with attention.
        MissingExtra: diffusers is not installed.
    """

    image_size: int = 32
    channels: tuple[int, ...] = (32, 64, 64)
    layers: int = 1
    heads: int = 4
    attention: int = 8
    groups: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        halvings = 2 ** (len(self.channels) - 1)
        if not self.channels or self.side % halvings:
            raise ConfigError(
                f"{len(self.channels)} levels need a side that is a multiple of {halvings}, got {self.side}.",
                "channels",
            )
        for width, there in zip(self.channels, self.attended, strict=True):
            if width % self.groups:
                raise ConfigError(f"must be multiples of groups={self.groups}, got {width}.", "channels")
            if there and width % self.heads:
                raise ConfigError(f"must be multiples of heads={self.heads}, got {width}.", "channels")

    @property
    def side(self) -> int:
        """Places along a side of what is denoised."""
        return self.image_size

    @property
    def attended(self) -> tuple[bool, ...]:
        """Whether there is attention at each level; the coarsest has it in any case, in its middle."""
        return tuple(self.side // 2**level <= self.attention for level in range(len(self.channels)))

    def blocks(self, with_attention: str) -> dict[str, Any]:
        """The arguments of diffusers' U-Nets that are common to them."""
        down = [f"{with_attention}DownBlock2D" if there else "DownBlock2D" for there in self.attended]
        up = [name.replace("Down", "Up") for name in reversed(down)]
        return {
            "sample_size": self.side,
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "down_block_types": tuple(down),
            "up_block_types": tuple(up),
            "norm_num_groups": self.groups,
        }


@models.register("text_to_image")
@dataclass(frozen=True, kw_only=True)
class TextToImageSpec(DenoiserSpec):
    """``CLIPTextModel``, ``UNet2DConditionModel`` and ``PatchVAE``: the parts of Stable Diffusion, small.

    The network is a ``TextToImage``. Text encoder and U-Net are trained, together; nothing is dropped out.

    Args:
        vocabulary: tokens of the tokenizer.
        context: tokens of a caption, the tokenizer's ``model_max_length``.
        end: the end-of-text token; by default the last one, as CLIP numbers it.
        text_width, text_layers, text_heads: of the text encoder.
        codec: what latents are; must be that of the data.
    """

    vocabulary: int
    context: int = 16
    end: int | None = None
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 4
    codec: PatchCodecSpec = PatchCodecSpec()

    def __post_init__(self) -> None:
        if self.image_size % self.codec.patch:
            raise ConfigError(
                f"must be a multiple of patch={self.codec.patch}, got {self.image_size}.", "image_size"
            )
        super().__post_init__()
        if not any(self.attended):
            raise ConfigError(
                f"no level is at most {self.attention} places wide, so that captions could not be heard. "
                "Raise attention, or give more levels.",
                "attention",
            )
        if self.text_width % self.text_heads:
            raise ConfigError(
                f"must be a multiple of {self.text_heads} heads, got {self.text_width}.", "text_width"
            )

    @property
    def side(self) -> int:
        return self.image_size // self.codec.patch

    def network(self) -> nn.Module:
        check_diffusers("model 'text_to_image'")
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        from expunge.training.codec_model import PatchVAE

        end = self.vocabulary - 1 if self.end is None else self.end
        text = CLIPTextConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.text_width,
            intermediate_size=4 * self.text_width,
            projection_dim=self.text_width,
            num_hidden_layers=self.text_layers,
            num_attention_heads=self.text_heads,
            max_position_embeddings=self.context,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=None,
        )
        unet = UNet2DConditionModel(
            **self.blocks("CrossAttn"),
            in_channels=self.codec.channels,
            out_channels=self.codec.channels,
            cross_attention_dim=self.text_width,
            attention_head_dim=self.heads,  # diffusers takes it for the number of heads here
        )
        vae = PatchVAE(patch=self.codec.patch, channels=self.codec.channels)
        return TextToImage(CLIPTextModel(text), unet, vae)


@models.register("class_denoiser")
@dataclass(frozen=True, kw_only=True)
class ClassDenoiserSpec(DenoiserSpec):
    """``UNet2DModel`` on pixels; the network is a ``ClassDenoiser``.

    Args:
        conditions: number of classes; ``None`` for an unconditional model.
        in_channels: colours.
    """

    conditions: int | None = None
    in_channels: int = 3

    def network(self) -> nn.Module:
        check_diffusers("model 'class_denoiser'")
        from diffusers import UNet2DModel

        unet = UNet2DModel(
            **self.blocks("Attn"),
            in_channels=self.in_channels,
            out_channels=self.in_channels,
            attention_head_dim=self.channels[-1] // self.heads,
            num_class_embeds=None if self.conditions is None else self.conditions + 1,
        )
        return ClassDenoiser(unet, self.conditions)


@models.register("pipeline")
@dataclass(frozen=True, kw_only=True)
class PipelineSpec(ModelSpec):
    """A text-to-image model from a folder that a pipeline of diffusers was saved in, with its weights.

    Every training starts from these weights, that of the original as that of the retrained ones.

    Args:
        path: the folder, or its name in ``$EXPUNGE_DATA``; nothing is downloaded.
        dtype: of the weights.

    Raises:
        DataError: there is no such folder.
        CheckpointError: as ``pretrained_pipeline``.
        MissingExtra: diffusers is not installed.
    """

    path: Path
    dtype: Literal["float32", "bfloat16"] = "float32"

    def network(self) -> nn.Module:
        folder = found_folder(self.path)
        return pretrained_pipeline(folder, torch.bfloat16 if self.dtype == "bfloat16" else torch.float32)


def pretrained_pipeline(folder: Path | str, dtype: torch.dtype | None = torch.float32) -> TextToImage:
    """The model in a folder that a pipeline of diffusers was saved in; in evaluation mode.

    Nothing is downloaded. Tokenizer, scheduler and all else of the pipeline come with it as ``companions``.

    Args:
        dtype: of the weights; None is float32 or what the files say, as diffusers decides.

    Raises:
        CheckpointError: no pipeline there, one that diffusers cannot load, or weights that do not fill it.
        MissingExtra: diffusers is not installed.
        Unsupported: as ``TextToImage.from_pipeline``.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise CheckpointError(
            f"'{folder}' has no {INDEX}, so it is no pipeline of diffusers. Give a folder that a "
            "pipeline's save_pretrained wrote."
        )
    check_diffusers(f"the pipeline '{folder}'")
    from diffusers import DiffusionPipeline

    from expunge.training.pretrained import silent

    try:
        with silent(), silent("diffusers"):
            known = _networks(folder)
            pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **known)
    except ExpungeError:
        raise
    except Exception as error:  # diffusers, transformers, safetensors and json each raise their own
        said = " ".join(str(error).split())[:200].rstrip(".")
        raise CheckpointError(
            f"'{folder}' cannot be loaded by diffusers: {said}. Copy the whole folder again."
        ) from None
    model = TextToImage.from_pipeline(pipe)
    return model if dtype is None else model.to(dtype)


def _networks(folder: Path) -> dict[str, Any]:
    """The networks of a pipeline by name, as diffusers and transformers load them.

    By itself a pipeline says nothing where a file does not hold what a network is made of, and goes on with
    random weights.

    Raises:
        CheckpointError: such a file.
        Unsupported: as ``check_parts``.
    """
    found, index = {}, json.loads((folder / INDEX).read_text(encoding="utf-8"))
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and all(entry)}
    check_parts(f"the pipeline '{folder}'", parts)
    for name, (library, kind) in parts.items():
        if library == CODEC:
            import_module(CODEC)  # diffusers imports no modules of others
        if library not in ("diffusers", "transformers") or not (folder / name).is_dir():
            continue
        cls: Any = getattr(import_module(library), str(kind), None)
        if nn.Module not in getattr(cls, "__mro__", ()):
            continue
        model, loading = cls.from_pretrained(folder / name, local_files_only=True, output_loading_info=True)
        if missing := sorted(loading["missing_keys"]):
            names = ", ".join(f"'{key}'" for key in missing[:2])
            raise CheckpointError(
                f"'{folder / name}' has no weights for {len(missing)} of the parameters of {kind}: {names}"
                f"{' and more' if len(missing) > 2 else ''}. Copy the whole folder again, or save the "
                "pipeline again with save_pretrained."
            )
        found[name] = model
    return found
