"""Folders of styles and objects as what a pipeline works on, in both layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.data import captioned_folder
from expunge.data.captioned_folder import CaptionedFolder
from expunge.data.pipeline_folder import PipelineFolder
from expunge.errors import CheckpointError, ConfigError, DataError, ExpungeError
from expunge.training.diffusion_models import pretrained_pipeline

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("diffusers")

from tests import canvases  # noqa: E402
from tests.cli import painters  # noqa: E402

STYLES, OBJECTS = ("mosaic", "Old_photo"), ("circle", "star")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Stable Diffusion, a micro pipeline of ours, and five images of each object in each style."""
    place = tmp_path_factory.mktemp("folders")
    painters.pipeline().save_pretrained(place / "plain")
    micro = canvases.micro()
    micro.model.pipeline(micro.data.tokenizer, micro.task).save_pretrained(place / "micro")
    draws = torch.Generator().manual_seed(0)
    for style in STYLES:
        for thing in OBJECTS:
            (place / "images" / style / thing).mkdir(parents=True)
            for number in range(5):
                pixels = torch.randint(256, (20, 24, 3), generator=draws, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / "images" / style / thing / f"{number}.png")
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    return made


def source(**fields: Any) -> CaptionedFolder:
    words = {"prompt": "a {object} image in {style} style", "names": {"Old_photo": "photo"}}
    return CaptionedFolder(**{"path": "images", "pipeline": "plain", **words, **fields})


def test_folders_in_folders_are_styles_and_objects(place):
    sourced = source().load()
    train, test = sourced.train, sourced.test
    assert (len(train), len(test), sourced.image_shape) == (16, 4, (3, 16, 16))
    assert train.concepts == {"style": ("mosaic", "photo"), "object": OBJECTS}
    assert test.captions == (
        "a circle image in photo style", "a star image in photo style",
        "a circle image in mosaic style", "a star image in mosaic style",
    )  # fmt: skip
    assert test.column("style").tolist() == [1, 1, 0, 0]
    assert test.column("object").tolist() == [0, 1, 0, 1]
    assert train.column("inputs").shape == (16, 4, 8, 8)
    assert (train.tokenizer.eos_token_id == train.column("empty.input_ids")[:, 1:]).all()


@pytest.mark.parametrize("name", ["plain", "micro"])
def test_latents_are_those_that_the_pipeline_itself_makes(place, name):
    """The last image of each cell is tested on; the first of these is ``Old_photo/circle/4.png``."""
    from expunge.data.image_folder import read_images

    model = pretrained_pipeline(place / name)
    sourced = source(pipeline=name).load()
    assert tuple(sourced.train.column("inputs").shape[1:]) == model.latent_shape
    images = read_images([place / "images" / "Old_photo" / "circle" / "4.png"], sourced.image_shape[1:])
    assert torch.allclose(sourced.test.column("inputs")[:1], model.encode(images), atol=1e-5)
    assert sourced.train.tokenizer.get_vocab() == model.companions.tokenizer.get_vocab()


def test_a_metadata_file_says_captions_and_concepts(place, tmp_path):
    lines = []
    for style in STYLES:
        for number in range(3):
            name = f"{style}{number}.png"
            shutil.copy(place / "images" / style / "star" / f"{number}.png", tmp_path / name)
            lines.append({"file_name": name, "text": f"a star in {style[-5:]}", "style": style})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    train = source(path=tmp_path, domains=("style",)).load().train
    assert train.concepts == {"style": ("Old_photo", "mosaic")}
    assert train.captions == ("a star in osaic",) * 2 + ("a star in photo",) * 2
    assert train.column("style").tolist() == [1, 1, 0, 0]


def test_latents_are_made_once_and_again_when_an_image_changes(place, tmp_path, monkeypatch):
    shutil.copytree(place / "images", tmp_path / "own")
    first = source(path=tmp_path / "own").load().train
    calls = []
    plain = captioned_folder.encode_images
    monkeypatch.setattr(captioned_folder, "encode_images", lambda *rest: calls.append(1) or plain(*rest))
    again = source(path=tmp_path / "own").load().train
    assert torch.equal(first.column("inputs"), again.column("inputs"))
    assert not calls
    shutil.copy(place / "images/mosaic/star/1.png", tmp_path / "own/mosaic/star/0.png")
    assert not torch.equal(
        source(path=tmp_path / "own").load().train.column("inputs"), first.column("inputs")
    )
    assert calls


def test_what_is_read_can_be_narrowed(place):
    sourced = source(only={"style": ("mosaic",)}, per_cell=2).load()
    assert (len(sourced.train), len(sourced.test)) == (2, 2)
    assert sourced.train.concepts == {"style": ("mosaic",), "object": OBJECTS}


def test_names_are_looked_for_where_expunge_data_says(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match="no folder 'images' here, nor in where EXPUNGE_DATA says, which is not"
    ):
        source().load()
    monkeypatch.setenv("EXPUNGE_DATA", str(place))
    assert len(source().load().train) == 16
    with pytest.raises(DataError, match=f"no folder 'gone' here, nor in '{place}', where EXPUNGE_DATA says"):
        source(pipeline="gone").load()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"path": "plain"}, r"has no metadata.jsonl and no images in <style>/<object>/"),
        ({"pipeline": "images"}, "cannot read 'images/model_index.json'"),
        ({"only": {"style": ("neon",)}}, "has no style 'neon'. It has mosaic, photo"),
        ({"only": {"colour": ("red",)}}, "there is no domain 'colour', only style, object"),
        ({"prompt": "a picture of {object}"}, "prompt: has no {style}, the name of the style"),
        ({"per_cell": 1}, "per_cell: must be at least 2"),
        ({"test_fraction": 0.95}, "there is nothing to train on of photo circle"),
        ({"domains": ()}, "domains: name at least one domain"),
        ({"names": {"Old_photo": "very " * 9}}, "tokens, more than the 10"),
    ],
)
def test_mistakes_are_said(place, fields, said):
    with pytest.raises(ExpungeError, match=said):
        source(**fields).load()


def test_a_line_without_its_concept_and_a_pipeline_without_its_parts_are_refused(place, tmp_path):
    painters.pictures(tmp_path / "plain", ["a star in mosaic style"])
    with pytest.raises(DataError, match="does not say the style of '0.png'"):
        source(path=tmp_path / "plain").load()
    shutil.copytree(place / "plain", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "tokenizer")
    with pytest.raises(CheckpointError, match="half' has no tokenizer, which its data need"):
        PipelineFolder(tmp_path / "half")
    with pytest.raises(ConfigError):
        source(test_fraction=1.0)
