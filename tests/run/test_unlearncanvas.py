"""The suite for real checkpoints, on a stand-in: noise in its folders and an untrained pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expunge.cli.main import main
from expunge.experiment import read

pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")

from tests import canvases  # noqa: E402

STYLES, OBJECTS = ("Artist_Sketch", "Seed_Images", "Van_Gogh"), ("Cats", "Dogs")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    draws = torch.Generator().manual_seed(0)
    for style in STYLES:
        for thing in OBJECTS:
            (place / "unlearncanvas" / style / thing).mkdir(parents=True)
            for number in range(1, 4):
                pixels = torch.randint(256, (8, 8, 3), generator=draws, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(
                    place / "unlearncanvas" / style / thing / f"{number}.jpg"
                )
    micro = canvases.micro()
    tokenizer = reader()
    spec = canvases.TextToImageSpec(
        vocabulary=len(tokenizer), context=16, image_size=8, codec=canvases.PIXELS, channels=(8, 8), groups=4,
        heads=2, attention=4, text_width=16, text_layers=1, text_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    spec().eval().pipeline(tokenizer, micro.task).save_pretrained(place / "stable-diffusion-v1-5")
    return place


def reader() -> object:
    from expunge.data.clip_tokenizer import clip_tokenizer

    words = ["photo", *(name.replace("_", " ") for name in (*STYLES, *OBJECTS))]
    return clip_tokenizer([f"a {word} image in {word} style." for word in words], max_length=16)


@pytest.fixture
def place(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_DATA", str(stand_in))
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    return stand_in


def test_it_is_valid_on_a_stand_in(place, capsys):
    assert main(["validate", "unlearncanvas", "engine.device=cpu"]) == 0
    said = capsys.readouterr().out
    assert "unlearncanvas: no mistakes found." in said
    assert "12 training and 6 test examples" in said
    assert "caption: A Cats image in Artist Sketch style.\n" in said
    assert "forget    style: 4 examples (33.3%)" in said
    assert "forget    object: 6 examples (50.0%)" in said
    assert "3 trainings (1 original, 1 retrained for each of 2 forget sets), 18 unlearnings" in said


def test_the_methods_are_those_of_the_published_table():
    experiment = read("unlearncanvas")
    assert list(experiment.methods) == [
        "esd", "fmn", "uce", "ca", "salun", "seot", "spm", "erase_diff", "scissorhands",
    ]  # fmt: skip
    drawn = {metric.gallery for metric in experiment.metrics if hasattr(metric, "gallery")}
    (gallery,) = drawn
    assert (gallery.seeds, gallery.steps, gallery.guidance) == ((188, 288, 588, 688, 888), 100, 9.0)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("variable", "no folder 'unlearncanvas' here, nor in where EXPUNGE_DATA says, which is not set"),
        ("unlearncanvas", "no folder 'unlearncanvas' here, nor in '"),
        ("stable-diffusion-v1-5", "no folder 'stable-diffusion-v1-5' here, nor in '"),
        ("stable-diffusion-v1-5/vae/config.json", "vae/config.json': No such file"),
        ("stable-diffusion-v1-5/unet/diffusion_pytorch_model.safetensors", "cannot be loaded by diffusers"),
        ("unlearncanvas/Van_Gogh", "the training data has no style 'Van Gogh'"),
    ],
)
def test_what_is_missing_is_said_in_one_line(place, tmp_path, monkeypatch, capsys, missing, said):
    import shutil

    if missing == "variable":
        monkeypatch.delenv("EXPUNGE_DATA")
    else:
        shutil.copytree(place, tmp_path / "data")
        gone = tmp_path / "data" / missing
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "data"))
    assert main(["validate", "unlearncanvas", "engine.device=cpu"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
