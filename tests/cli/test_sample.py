"""``expunge sample``: several pipelines, the same prompts and noise, one picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge import pipelines, seeding
from expunge.cli.main import main

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from tests.cli import painters

SAMPLE = "sample --engine.device cpu --steps 2 --pipeline first"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sample")
    for seed, name in enumerate(("first", "second")):
        painters.pipeline(seed=seed).save_pretrained(place / name)
    shutil.copytree(place / "first", place / "loud")
    file = place / "loud" / "unet" / "diffusion_pytorch_model.safetensors"
    loud = {n: v * (1e30 if n.startswith("conv_out") else 1) for n, v in load_file(file).items()}
    save_file(loud, file, metadata={"format": "pt"})
    return place


@pytest.fixture
def place(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folders)
    return folders


def sample(*words: str) -> int:
    return main([*SAMPLE.split(), *words])


def test_every_pipeline_has_a_row_and_every_seed_a_column(place, capsys):
    from PIL import Image

    (place / "prompts.txt").write_text("a circle\n\n", encoding="utf-8")
    given = ["a star in photo style", "--file", "prompts.txt", "--pipeline", "second", "--seeds", "3"]
    assert sample(*given, "--out", "made/grid.png") == 0
    said = capsys.readouterr().out
    assert "12 images of 2 prompts by 2 pipelines, 2 steps, guidance 7.5." in said
    assert "Picture: made/grid.png" in said
    sheet = np.asarray(Image.open(place / "made" / "grid.png").convert("RGB"))
    found = pipelines.sample(
        ["first", "second"], ["a star in photo style", "a circle"], seeds=range(3),
        drawing=pipelines.Drawing(steps=2),
    )  # fmt: skip
    assert list(found) == ["first", "second"]
    for block, row, column in ((0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 0)):
        image = list(found.values())[row][block, column]
        large = (image * 255).round().byte().permute(1, 2, 0).numpy().repeat(8, 0).repeat(8, 1)
        top = block * sheet.shape[0] // 2 + 44 + row * 134
        left = sheet.shape[1] - (3 - column) * 134
        assert (sheet[top : top + 128, left : left + 128] == large).all(), (block, row, column)


def test_the_noise_is_that_of_prompt_and_seed_and_the_images_those_of_plain_diffusers(place):
    """The micro pipeline's DDIM scheduler with trailing timesteps, from the same noise."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    drawing = pipelines.Drawing(steps=4, guidance=2.0)
    (found,) = pipelines.sample(["first"], ["a star"], seeds=[7], drawing=drawing).values()
    (alone,) = pipelines.sample(["first"], ["a circle", "a star"], seeds=[1, 7], drawing=drawing).values()
    assert torch.allclose(found[0, 0], alone[1, 1], atol=1e-5)
    pipe = StableDiffusionPipeline.from_pretrained("first")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    start = torch.Generator().manual_seed(seeding.derive(7, "a star"))
    noise = torch.randn(1, 4, 8, 8, generator=start)
    theirs = pipe(
        "a star", latents=noise, num_inference_steps=4, guidance_scale=2.0, output_type="np"
    ).images  # fmt: skip
    assert np.allclose(found[0, 0].permute(1, 2, 0).numpy(), theirs[0], atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a star", "--guidance", "0"], "guidance: must be above 0, got 0.0. Use 1 for none"),
        (["a star", "--steps", "1001"], "steps: must be 1..1000"),
        (["a star", "--out", "grid.gif"], "'grid.gif' is no name of an image. Name a .png"),
        ([], "there is nothing to draw: 0 prompts and 4 seeds"),
        (["a star " * 9], "has 20 tokens, more than the 10"),
        (["a star", "--pipeline", "nowhere"], "'nowhere' has no model_index.json"),
        (["a star", "--pipeline", "loud"], "the latents became NaN or infinite at timestep"),
        (["a star", "--file", "none.txt"], "cannot read 'none.txt'"),
    ],
)
def test_mistakes_are_one_line(place, capsys, words, said):
    assert sample(*words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (place / "grid.png").exists()
