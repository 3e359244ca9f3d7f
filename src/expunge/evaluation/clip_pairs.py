"""How well an image and a caption match: a CLIP pair trained on the data's own images, or the user's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from expunge import config
from expunge.data.arrays import ArrayData
from expunge.data.captions import CaptionedImages
from expunge.errors import ConfigError, DataError, MissingEvidence, MissingExtra, Unsupported
from expunge.evaluation import gallery as galleries
from expunge.evaluation.evidence import Evidence, Tensors
from expunge.evaluation.picture_judges import PictureClassifier, epochs
from expunge.tasks.image_text import ImageText
from expunge.training import functions
from expunge.training.clip_models import ClipPair
from expunge.training.engine import Engine
from expunge.training.optim import AdamW, Optim
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

TRUSTED = 0.9
"""The share of held-out images whose prompt is found below which a pair's cosines cannot be trusted."""

_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Which pair of encoders says how well images match their prompts.

    By default the judges' convolutional network beside CLIP's text encoder (``Encoders``), trained together
    on all training images and their captions, those to forget among them, by the loop that trains everything.
    A small vision transformer in its place learnt styles and no shapes from two thousand images.

    Args:
        width: of the text encoder, and of the common space.
        layers, heads: of the text encoder.
        channels: of the first stage of the image encoder.
        epochs, batch_size, optim: of its training.
        steps: there are more epochs where images are so few that there would be fewer steps than this.
        seed: of its training; the same pair for all models and forget sets.
        load: your own instead, ``module:function`` or ``file.py:function``: it returns a module with
            ``image_features``, which takes ``(N, C, H, W)`` in [0, 1] to ``(N, D)``, and ``text_features``,
            which takes a list of captions to ``(N, D)``.

    Raises:
        ConfigError: a size below 1.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    channels: int = 24
    epochs: int = 8
    batch_size: int = 64
    optim: Optim = AdamW(lr=2e-3, weight_decay=0.05, schedule="cosine", warmup=0.1)
    steps: int = 200
    seed: int = 0
    load: str = ""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "channels", "epochs", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)


class Encoders(nn.Module):
    """The two encoders of a ``ClipPair``: pictures by convolutions, captions as CLIP reads them.

    Args:
        images: takes ``(N, C, H, W)`` to ``(N, D)``.
        captions: ``CLIPTextModelWithProjection`` of transformers, to ``D`` numbers.
    """

    def __init__(self, images: nn.Module, captions: nn.Module) -> None:
        super().__init__()
        self.images, self.captions = images, captions
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return cast(Tensor, self.images(pixel_values))

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        return cast(Tensor, self.captions(input_ids=input_ids).text_embeds)


@dataclass(frozen=True, eq=False)
class Pair:
    """A pair of encoders and what it makes of the prompts and of held-out real images.

    Attributes:
        prompts: unit vectors of the gallery's prompts, ``(P, D)``.
        retrieval: the share of test images nearer to their own prompt than to every other.
        real: the mean cosine of test images with their own prompt.
    """

    model: Any
    prompts: Tensor
    retrieval: float = 0.0
    real: float = 0.0

    def look(self, images: Tensor, engine: Engine) -> Tensor:
        """Unit vectors ``(N, D)`` on the CPU of images ``(N, C, H, W)`` uint8.

        Raises:
            DataError: features that are NaN or infinite, or of another length than those of prompts.
        """
        placed: Any = engine.placed(self.model)
        with engine.frozen(placed):
            parts = [
                placed.image_features(part.to(engine.torch_device).float() / 255).float().cpu()
                for part in images.split(_BATCH)
            ]
        found = _unit(torch.cat(parts), "images")
        if found.shape[1] != self.prompts.shape[1]:
            raise DataError(
                f"the pair's features of images have {found.shape[1]} numbers, those of captions "
                f"{self.prompts.shape[1]}. Give encoders that share a space."
            )
        return found

    def check(self) -> None:
        """Refuses a pair that does not tell real images apart.

        Raises:
            DataError: with what it reached.
        """
        if self.retrieval < TRUSTED:
            raise DataError(
                f"the CLIP pair cannot be trusted: of {len(self.prompts)} prompts it finds the right one for "
                f"only {self.retrieval:.1%} of real images that it was not trained on, below {TRUSTED:.0%}. "
                "Train it longer (clip.epochs), or bring your own (clip.load)."
            )


def pair(evidence: Evidence, clip: Clip) -> Pair:
    """The pair of this data, trained or loaded once.

    Raises:
        Unsupported: images without captions, or as ``gallery.training``.
        MissingEvidence: there are no test images to know it by.
        ConfigError: ``load`` names no function that returns a pair.
        MissingExtra: transformers is not installed.
    """
    return evidence.original.once(("clip pair", clip), lambda: _pair(evidence, clip))


def _pair(evidence: Evidence, clip: Clip) -> Pair:
    train, asked = galleries.training(evidence), galleries.prompts(evidence)
    if not isinstance(train, CaptionedImages):
        raise Unsupported("a CLIP pair matches images with captions, and there are classes. Use a judge.")
    if "test" not in evidence.parts:
        raise MissingEvidence(
            "how far a CLIP pair can be trusted is measured on test images. Give the split test=…."
        )
    engine, test = evidence.session.engine, evidence.parts["test"]
    if clip.load:
        model = loaded(clip)
        with engine.frozen(engine.placed(model)) as placed:
            texts = placed.text_features(list(asked.texts)).float().cpu()  # type: ignore[operator]
    else:
        images = galleries.decoded(evidence, train.column("inputs"))
        model = _trained(evidence, clip, train, images)
        with engine.frozen(engine.placed(model)) as placed:
            rows = asked.condition.to(engine.torch_device)
            texts = placed.text_features(rows).float().cpu()  # type: ignore[operator]
    if texts.shape[0] != len(asked.texts):
        raise DataError(f"the pair gives features {tuple(texts.shape)} for {len(asked.texts)} captions.")
    found = Pair(model, _unit(texts, "captions"))
    cells = galleries.cells(test, asked.domains)
    own = (cells[:, None] == asked.cells[None]).all(2)
    known = own.any(1)
    if not known.any():
        raise DataError("no test image shows what a prompt asks for. Give test images of the same concepts.")
    cosines = found.look(galleries.decoded(evidence, test.column("inputs"))[known], engine) @ found.prompts.T
    right = own[known].int().argmax(1)
    return Pair(
        model,
        found.prompts,
        float((cosines.argmax(1) == right).double().mean()),
        float(cosines.gather(1, right[:, None]).double().mean()),
    )


def loaded(clip: Clip) -> nn.Module:
    """The user's own pair.

    Raises:
        ConfigError: no such function, or nothing with both kinds of features from it.
    """
    made = functions.call(clip.load)
    if not isinstance(made, nn.Module) or not all(
        callable(getattr(made, name, None)) for name in ("image_features", "text_features")
    ):
        raise ConfigError(
            f"'{clip.load}' returned {type(made).__name__}; expected a torch nn.Module with image_features "
            "and text_features.",
            "clip.load",
        )
    return made.eval()


def _trained(evidence: Evidence, clip: Clip, train: CaptionedImages, images: Tensor) -> nn.Module:
    tokens, end = train.column("input_ids"), int(train.tokenizer.eos_token_id)
    colours, most = images.shape[1], int(tokens.max()) + 1
    model = partial(_encoders, clip, colours, most, tokens.shape[1], end)
    training = Training(epochs=epochs(clip, len(train)), batch_size=clip.batch_size, optim=clip.optim)
    recipe = Recipe(model, ImageText(), training)
    session = Session(clip.seed, evidence.session.engine, evidence.session.callbacks).child("clip pair")
    data = ArrayData({"inputs": images, "input_ids": tokens})

    def compute() -> tuple[dict[str, Any], Tensors]:
        made = recipe.train(data, session, "clip pair")
        return {}, {name: value.cpu() for name, value in made.state_dict().items()}

    tensors = evidence.kept("clip pair", (config.dump(clip), data.fingerprint()), compute)
    network = recipe.initial(session)
    network.load_state_dict(tensors)
    return evidence.session.engine.place(network).eval()


def _encoders(clip: Clip, colours: int, vocabulary: int, context: int, end: int) -> nn.Module:
    if find_spec("transformers") is None:
        raise MissingExtra("a CLIP pair", "diffusion")
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    settings = CLIPTextConfig(
        vocab_size=vocabulary,
        max_position_embeddings=context,
        hidden_size=clip.width,
        intermediate_size=4 * clip.width,
        projection_dim=clip.width,
        num_hidden_layers=clip.layers,
        num_attention_heads=clip.heads,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=None,
    )
    images = PictureClassifier(colours, clip.width, clip.channels)
    return ClipPair(Encoders(images, CLIPTextModelWithProjection(settings)))


def _unit(features: Tensor, of: str) -> Tensor:
    if features.ndim != 2 or not torch.isfinite(features).all():
        raise DataError(
            f"the pair's features of {of} are {tuple(features.shape)} or not finite; expected (N, D)."
        )
    return normalize(features, dim=1)
