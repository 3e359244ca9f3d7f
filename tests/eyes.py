"""Micro data of faces and a LLaVA of 11 thousand numbers for them, not trained."""

from __future__ import annotations

import functools

import torch
from torch import nn

from expunge.data.faces import Faces
from expunge.data.source import Sourced
from expunge.data.split import Split
from expunge.tasks import VisionLanguage
from expunge.training.vision_language_models import Llava

SOURCE = Faces(people=4, background=4, held_out=4, nameless=2, views=1, attributes=1, size=8, patch=4)
"""Two questions about each of four people and three harmless ones about each of four others, 8×8 pixels."""


@functools.cache
def faces() -> Sourced:
    return SOURCE.load()


@functools.cache
def task() -> VisionLanguage:
    tokenizer = faces().train.tokenizer
    return VisionLanguage(len(tokenizer), tokenizer.convert_tokens_to_ids("<image>"))


def spec(**fields: object) -> Llava:
    sizes = {"image_size": 8, "patch_size": 4, "vision_width": 8, "vision_layers": 1, "vision_heads": 2}
    sizes |= {"width": 16, "layers": 2, "heads": 2, "mlp": 16, "context": 64}
    return Llava(**{"vocabulary": task().vocabulary, "image_token": task().image_token, **sizes, **fields})


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return spec()().eval()


def split() -> Split:
    """The last of the four people is to be forgotten."""
    return Split.from_ids(faces().train, faces().train.sets["forget25"])


def batch(data: object) -> dict[str, torch.Tensor]:
    (found,) = data.batches([torch.arange(len(data))], device="cpu")
    return found
