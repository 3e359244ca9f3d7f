"""``expunge validate`` on experiments of images to be drawn: one example as the model sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.cli.main import main

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

UNET = {"image_size": 8, "channels": [8, 8], "groups": 4, "heads": 2, "attention": 4}
CANVAS = {
    "data": {
        "kind": "canvas", "styles": ["photo", "mosaic"], "objects": ["star", "circle"], "per_cell": 2,
        "test_per_cell": 1, "size": 8, "codec": {"patch": 2, "channels": 6},
    },
    "model": {
        "kind": "text_to_image", "vocabulary": 608, **UNET, "text_width": 16, "text_layers": 1,
        "text_heads": 2,
    },
    "task": {"kind": "diffusion", "dropout": {"empty": 0.1, "style": 0.08}},
    "forget": {"mosaic": {"kind": "concept_set", "domain": "style", "name": "mosaic"}},
}  # fmt: skip
SHAPES = {
    "data": {"kind": "shapes", "objects": ["star", "circle"], "per_class": 3, "test_per_class": 1, "size": 8},
    "model": {"kind": "class_denoiser", "conditions": 2, **UNET},
    "task": {"kind": "diffusion", "conditions": 2},
    "forget": {"star": {"kind": "class_set", "classes": [0]}},
}


def validate(place: Path, changed: dict[str, Any]) -> int:
    experiment = {
        "name": "pictures",
        "train": {"epochs": 1, "batch_size": 4},
        "methods": {"grad_diff": {"epochs": 1}},
        "metrics": ["loss"],
        "engine": {"device": "cpu"},
    }
    (place / "pictures.yaml").write_text(yaml.safe_dump(experiment | changed), encoding="utf-8")
    return main(["validate", str(place / "pictures.yaml")])


def test_of_a_canvas_sizes_caption_tokens_padding_and_dropout(tmp_path, capsys):
    assert validate(tmp_path, CANVAS) == 0
    said = capsys.readouterr().out
    assert "    image: 3 × 8 × 8\n    inputs: 6 × 4 × 4\n    caption: a star image in photo style\n" in said
    assert "    tokens: <|startoftext|> a</w> star</w> image</w> in</w> photo</w> style</w> <|end" in said
    assert "    padding: 8 of 16 tokens; nothing is masked, the model reads them too\n" in said
    assert "    in training another caption takes its place: empty 10%, style 8%\n" in said
    assert "words in pieces" not in said


def test_of_shapes_sizes_and_class(tmp_path, capsys):
    assert validate(tmp_path, SHAPES) == 0
    said = capsys.readouterr().out
    assert "    image: 3 × 8 × 8\n    inputs: 3 × 8 × 8\n    class: 0 (star)\n" in said


def test_data_of_another_size_than_the_model_is_found(tmp_path, capsys):
    wide = {**CANVAS, "data": {**CANVAS["data"], "size": 16}}
    assert validate(tmp_path, wide) == 2
    assert "examples are (6, 8, 8), but the model works on (6, 4, 4)" in capsys.readouterr().err


def test_of_faces_the_picture_beside_the_prompt(tmp_path, capsys):
    from expunge.cli.validate import _picture, _text
    from expunge.data.faces import Faces
    from expunge.tasks import CausalLM

    sourced = Faces(people=4, background=4, nameless=2, views=1, attributes=1, size=8, patch=4).load()

    class Experiment:
        task = CausalLM(10)

    lines = [*_text(sourced.train, None), *_picture(sourced, Experiment(), None)]  # type: ignore[arg-type]
    assert any("labels: " in line for line in lines)
    assert lines[-1] == "    picture: 3 × 8 × 8, 4 times the token '<image>' of the prompt"
