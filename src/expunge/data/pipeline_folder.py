"""What data needs of a pipeline of diffusers: its tokenizer, its autoencoder and the size of its images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.data.patch_codec import PatchCodecSpec
from expunge.data.tokenizers import load_tokenizer
from expunge.errors import CheckpointError, MissingExtra

INDEX = "model_index.json"
"""The file that makes a folder a pipeline of diffusers."""

OURS = "PatchVAE"
"""The closed-form autoencoder, which needs nothing loaded."""


@dataclass(frozen=True)
class PipelineFolder:
    """A folder that ``save_pretrained`` of a text-to-image pipeline wrote; its networks stay where they are.

    Raises:
        CheckpointError: no pipeline there, or one without an autoencoder, a UNet or a tokenizer.
    """

    path: Path

    def __post_init__(self) -> None:
        index = self._json(INDEX)
        for part in ("vae", "unet", "tokenizer"):
            if not (all(index.get(part) or [None]) and (self.path / part).is_dir()):
                raise CheckpointError(
                    f"the pipeline '{self.path}' has no {part}, which its data need. Copy the whole folder "
                    "again, or give a pipeline like Stable Diffusion's."
                )

    def tokenizer(self) -> Any:
        """Of captions.

        Raises:
            DataError: it cannot be loaded.
            MissingExtra: transformers is not installed.
        """
        return load_tokenizer(self.path / "tokenizer")

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` of its images: the UNet's ``sample_size`` times the autoencoder's factor."""
        sample = self._json("unet/config.json").get("sample_size")
        levels = self._json("vae/config.json").get("block_out_channels")
        if not sample or not levels:
            raise CheckpointError(
                f"the configurations in '{self.path}' do not say how large its images are. Copy the whole "
                "folder again."
            )
        height, width = (sample, sample) if isinstance(sample, int) else sample
        factor = 2 ** (len(levels) - 1)  # as pipelines of diffusers take it
        return height * factor, width * factor

    def encoder(self) -> Callable[[Tensor], Tensor]:
        """Takes images ``(N, 3, H, W)`` in [0, 1] to what its denoiser works on, on a GPU where there is one.

        Raises:
            CheckpointError: the autoencoder cannot be loaded.
            MissingExtra: diffusers is not installed.
        """
        library, kind = self._json(INDEX)["vae"]
        settings = self._json("vae/config.json")
        if kind == OURS:
            spec = PatchCodecSpec(patch=settings["patch"], channels=settings["channels"])
            return lambda images: spec.latents(2 * images - 1)
        try:
            cls: Any = getattr(import_module(library), kind)
        except (ImportError, AttributeError):
            raise MissingExtra(f"the autoencoder of '{self.path}', {library}.{kind},", "diffusion") from None
        try:
            vae = cls.from_pretrained(self.path / "vae", local_files_only=True).float().eval()
        except Exception as error:  # diffusers, safetensors and json each raise their own
            said = " ".join(str(error).split())[:200].rstrip(".")
            raise CheckpointError(
                f"'{self.path / 'vae'}' cannot be loaded by diffusers: {said}. Copy the whole folder again."
            ) from None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        vae.requires_grad_(False).to(device)

        def encode(images: Tensor) -> Tensor:
            latents: Tensor = vae.encode(2 * images.to(device) - 1).latent_dist.mode()
            return latents * float(vae.config.scaling_factor)

        return encode

    def encoder_digest(self) -> str:
        """SHA-256 of all files of the autoencoder: who has the same makes the same latents."""
        found = hashlib.sha256()
        for file in sorted((self.path / "vae").iterdir()):
            if file.is_file():
                found.update(file.name.encode() + file.read_bytes())
        return found.hexdigest()

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or "it is no JSON"
            raise CheckpointError(
                f"cannot read '{path}': {said}. Give the folder that a pipeline's save_pretrained wrote."
            ) from None
        if not isinstance(found, dict):
            raise CheckpointError(f"'{path}' is damaged. Copy the whole folder again.")
        return found
