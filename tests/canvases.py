"""Text-to-image models of canvases: a micro one without training, and one that draws what it is told.

The trained one is that of the suite ``canvas-mini`` and takes some minutes; it is kept in a folder under a
name made of all that it depends on.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expunge import config, experiment
from expunge.data.canvas import Canvas
from expunge.data.captions import CaptionedImages
from expunge.data.patch_codec import PatchCodecSpec
from expunge.store import key_of
from expunge.tasks.diffusion import Diffusion
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.diffusion_models import TextToImage, TextToImageSpec
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

STYLES, OBJECTS = ("photo", "sketch", "mosaic"), ("circle", "square", "triangle")
DROPOUT = {"empty": 0.1, "style": 0.08, "object": 0.08}
PIXELS = PatchCodecSpec(patch=1, channels=3)


@dataclass(frozen=True, eq=False)
class CanvasModel:
    """A text-to-image model and everything that made it."""

    source: Canvas
    data: CaptionedImages
    test: CaptionedImages
    recipe: Recipe
    model: TextToImage

    @property
    def task(self) -> Diffusion:
        assert isinstance(self.recipe.task, Diffusion)
        return self.recipe.task

    @property
    def empty(self) -> torch.Tensor:
        """The tokens of the empty prompt, ``(1, T)``."""
        return self.data.column("empty.input_ids")[:1]


def recipe(data: CaptionedImages, size: int, sizes: dict[str, Any], training: Training) -> Recipe:
    """Velocity prediction on a cosine schedule, with other captions in the place of a quarter."""
    model = TextToImageSpec(
        vocabulary=len(data.tokenizer), context=16, image_size=size, codec=PIXELS, **sizes
    )
    task = Diffusion(prediction="velocity", schedule="cosine", dropout=DROPOUT, antithetic=True)
    return Recipe(model, task, training)


@functools.cache
def micro() -> CanvasModel:
    """Two styles and two objects at 8 × 8 pixels, and an untrained model of 50,000 parameters."""
    source = Canvas(styles=STYLES[1:], objects=OBJECTS[:2], per_cell=3, test_per_cell=1, size=8, codec=PIXELS)
    sourced = source.load()
    sizes = {"channels": (8, 8), "groups": 4, "heads": 2, "attention": 4}
    sizes |= {"text_width": 16, "text_layers": 1, "text_heads": 2}
    made = recipe(sourced.train, 8, sizes, Training(epochs=1, batch_size=6, optim=AdamW(lr=1e-3)))
    model = made.initial(Session(seed=0)).eval()
    return CanvasModel(source, sourced.train, sourced.test, made, model)


def trained(folder: Path) -> CanvasModel:
    """The original of the suite ``canvas-mini``, trained or read from the folder."""
    suite = experiment.read("canvas-mini")
    sourced, made = suite.sourced, suite.recipe
    assert isinstance(suite.data, Canvas)
    assert isinstance(sourced.train, CaptionedImages)
    assert isinstance(sourced.test, CaptionedImages)
    kinds = [config.dump(part) for part in (made.model, made.task, made.training)]
    file = folder / f"canvas-{key_of(*kinds, sourced.train.fingerprint())}.safetensors"
    model = made.initial(Session(seed=0)).eval()
    if file.exists():
        load_weights(model, file)
    else:
        model = made.train(sourced.train, Session(seed=0))
        save_weights(model, file)
        file.with_suffix(".json").write_text(json.dumps(kinds, indent=1))
    assert isinstance(model, TextToImage)
    return CanvasModel(suite.data, sourced.train, sourced.test, made, model)
