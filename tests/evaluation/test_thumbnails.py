"""Pictures of forget examples, from latents, from pixels in [−1, 1] and from plain images."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch

from expunge.data import ArrayData
from expunge.data.canvas import Canvas, Shapes
from expunge.evaluation.thumbnails import thumbnails
from expunge.tasks import Classification, Diffusion

pytest.importorskip("PIL")


def pixels(picture: dict[str, str]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["png"]))).convert("RGB"))


def test_latents_of_a_canvas_are_decoded_and_have_their_captions():
    pytest.importorskip("diffusers")
    from tests import canvases

    canvas = canvases.micro()
    few = canvas.data.subset([0, 7])
    found = thumbnails(few, canvas.task, canvas.model)
    assert [one["label"] for one in found] == list(few.captions)
    wanted = (canvas.source.images([0, 7]) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for one, image in zip(found, wanted, strict=True):
        assert np.abs(pixels(one).astype(int) - image).max() <= 1


def test_pixels_of_shapes_are_moved_to_0_1_and_have_their_class():
    source = Shapes(objects=("star", "circle"), per_class=2, test_per_class=1, size=8).load()
    found = thumbnails(source.train, Diffusion(conditions=2), torch.nn.Linear(1, 1), source.class_names)
    assert [one["label"] for one in found] == ["star", "star", "circle", "circle"]
    wanted = ((source.train.column("inputs")[3] / 2 + 0.5) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels(found[3]).astype(int) - wanted).max() <= 1


def test_plain_images_stay_as_they_are_and_latents_without_a_decoder_are_left_out():
    data = ArrayData({"inputs": torch.full((1, 3, 4, 4), 0.2), "targets": torch.tensor([1])})
    (one,) = thumbnails(data, Classification(2), torch.nn.Linear(1, 1), ("cat", "dog"))
    assert one["label"] == "dog"
    assert (pixels(one) == 51).all()
    canvas = Canvas(styles=("photo",), objects=("star",), per_cell=1, test_per_cell=1, size=8).load()
    assert canvas.train.column("inputs").shape[1] == 6
    assert thumbnails(canvas.train, Diffusion(), None) == []
