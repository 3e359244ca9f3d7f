"""Folders of text-to-image pipelines as anybody makes them: diffusers and transformers, nothing of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "a", "an", "image", "picture", "of", "in", "star", "circle", "mosaic", "photo", "sketch", "style", "big",
]  # fmt: skip
CONTEXT = 10


def tokenizer(context: int = CONTEXT) -> Any:
    """One token for each word; begin and end of the text as CLIP has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: i for i, word in enumerate(["<unk>", *WORDS, "<begin>", "<end>"])}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(name, numbers[name]) for name in ("<begin>", "<end>")]
    made.post_processor = processors.TemplateProcessing(single="<begin> $A <end>", special_tokens=ends)
    names = {"unk_token": "<unk>", "bos_token": "<begin>", "eos_token": "<end>", "pad_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=context, **names)


def pipeline(attending: bool = True, seed: int = 0) -> Any:
    """An untrained Stable Diffusion of 16 × 16 pixels, of 4 × 8 × 8 latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    reader = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(reader), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=CONTEXT, bos_token_id=None,
        eos_token_id=reader.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    kinds = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if attending else ("DownBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("DownBlock2D", kinds[0]), up_block_types=(kinds[1], "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn" if attending else None,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4, sample_size=16, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=reader, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def drawn(folder: Path, prompt: str, seed: int = 0) -> torch.Tensor:
    """What plain diffusers draws with the folder, ``(16, 16, 3)``."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    draws = torch.Generator().manual_seed(seed)
    images = pipe(prompt, num_inference_steps=3, generator=draws, output_type="np").images
    return torch.from_numpy(images[0])


def pictures(folder: Path, captions: Sequence[str], seed: int = 0) -> None:
    """An image folder: noise of 20 × 24 pixels."""
    from PIL import Image

    draws = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    lines = []
    for number, caption in enumerate(captions):
        pixels = torch.randint(256, (20, 24, 3), generator=draws, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
