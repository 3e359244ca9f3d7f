"""Denoisers by name, pipelines of diffusers in and out, and the closed-form codec as an autoencoder."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from tests import canvases

import expunge
from expunge import config
from expunge.data.captions import tokenise
from expunge.data.patch_codec import PatchCodecSpec
from expunge.data.split import Split
from expunge.errors import CheckpointError, ConfigError, DataError, Unsupported
from expunge.methods.base import methods
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.tasks import Diffusion
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.diffusion_models import TextToImage, pretrained_pipeline
from expunge.training.models import models
from expunge.training.sampling import noise, sample
from expunge.training.session import Session

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from expunge.training.codec_model import PatchVAE  # noqa: E402

CLASSES = {"kind": "class_denoiser", "conditions": 3, "image_size": 8, "channels": [8, 8]}
CLASSES |= {"groups": 4, "heads": 2}
TEXT = {"kind": "text_to_image", "vocabulary": 40, "image_size": 16, "channels": [8, 8], "groups": 4}
TEXT |= {"heads": 2, "text_width": 16, "text_heads": 2, "text_layers": 1}
PROMPTS = ["a circle image in sketch style", "an image in mosaic style"]


@pytest.fixture(scope="module")
def canvas() -> canvases.CanvasModel:
    return canvases.micro()


@pytest.fixture(scope="module")
def small_vae():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=3, sample_size=16, scaling_factor=0.7,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def pipe_of(canvas, **fields):
    pipe = canvas.model.pipeline(canvas.data.tokenizer, canvas.task)
    pipe.set_progress_bar_config(disable=True)
    return type(pipe)(**{**pipe.components, "requires_safety_checker": False, **fields})


def drawn_by(pipe, prompts, start, guidance=2.5, steps=5):
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        prompts, latents=start, num_inference_steps=steps, guidance_scale=guidance, output_type="np"
    ).images  # fmt: skip
    return torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)


def drawn_by_ours(model, task, tokenizer, prompts, start, guidance=2.5, steps=5):
    empty = tokenise(tokenizer, [""])
    latents = sample(
        model, task, tokenise(tokenizer, prompts), empty=empty, start=start, guidance=guidance, steps=steps
    )
    return model.decode(latents)


@pytest.mark.parametrize("spec", [CLASSES, TEXT, {**TEXT, "codec": {"patch": 1, "channels": 3}}])
def test_names_shapes_and_the_round_trip_through_a_file(spec, tmp_path):
    built = config.build(models, spec)
    assert config.build(models, config.dump(built)) == built
    torch.manual_seed(0)
    model, other = built().eval(), built().eval()
    x = torch.randn(2, *model.latent_shape)
    condition = torch.tensor([0, 3]) if spec is CLASSES else torch.randint(40, (2, 16))
    with torch.no_grad():
        predicted = model(x, torch.tensor([1, 999]), condition)
        assert predicted.shape == x.shape
        assert not torch.allclose(predicted, other(x, torch.tensor([1, 999]), condition))
        save_weights(model, tmp_path / "model.safetensors")
        load_weights(other, tmp_path / "model.safetensors")
        assert torch.equal(predicted, other(x, torch.tensor([1, 999]), condition))
        trained = model.train()(x, torch.tensor([1, 999]), condition)
        assert torch.allclose(predicted, trained, atol=1e-5)  # nothing is dropped out


def test_attention_is_where_sides_are_small_and_latents_are_those_of_the_codec():
    model = config.build(models, {**TEXT, "image_size": 64, "channels": [8, 8, 8], "attention": 8})()
    assert model.latent_shape == (6, 32, 32)
    assert [type(block).__name__ for block in model.unet.down_blocks] == [
        "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D",
    ]  # fmt: skip
    assert not any(p.requires_grad for p in model.vae.parameters())
    assert model.text_encoder.config.eos_token_id == 39


def test_no_condition_is_the_class_after_the_last():
    torch.manual_seed(0)
    model = config.build(models, CLASSES)().eval()
    x, timesteps = torch.randn(2, 3, 8, 8), torch.tensor([3, 5])
    with torch.no_grad():
        assert torch.equal(model(x, timesteps, None), model(x, timesteps, torch.tensor([3, 3])))
        assert not torch.equal(model(x, timesteps, None), model(x, timesteps, torch.tensor([0, 0])))
    free = config.build(models, {**CLASSES, "conditions": None})()
    assert free(x, timesteps, None).shape == x.shape
    assert torch.equal(model.decode(torch.tensor([-2.0, -1.0, 0.0, 1.0])), torch.tensor([0, 0, 0.5, 1.0]))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({**TEXT, "image_size": 15}, "image_size: must be a multiple of patch=2, got 15"),
        ({**TEXT, "image_size": 10}, "channels: 2 levels need a side that is a multiple of 2, got 5"),
        ({**TEXT, "channels": [8, 6]}, "channels: must be multiples of groups=4, got 6"),
        ({**TEXT, "heads": 3}, "channels: must be multiples of heads=3, got 8"),
        (
            {**TEXT, "attention": 2},
            "attention: no level is at most 2 places wide, so that captions could not",
        ),
        ({**TEXT, "text_heads": 3}, "text_width: must be a multiple of 3 heads"),
        ({**CLASSES, "conditions": 0}, "conditions: must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(spec, said):
    with pytest.raises(ConfigError, match=said):
        config.build(models, spec)


def test_the_codec_is_an_autoencoder_of_diffusers(tmp_path):
    spec = PatchCodecSpec(patch=2, channels=12)
    vae, images = PatchVAE(patch=2, channels=12), torch.rand(2, 3, 8, 8) * 2 - 1
    found = vae.encode(images).latent_dist
    assert torch.equal(found.mode(), found.sample())
    assert torch.allclose(found.mode() * vae.config.scaling_factor, spec.latents(images), atol=1e-6)
    assert torch.allclose(vae.decode(found.mode()).sample, images, atol=1e-5)  # 12 of 12: nothing is lost
    assert 2 ** (len(vae.config.block_out_channels) - 1) == 2
    assert list(vae.parameters()) == []
    vae.save_pretrained(tmp_path)
    assert torch.equal(PatchVAE.from_pretrained(tmp_path).encode(images).latent_dist.mode(), found.mode())


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_it_draws_what_the_pipeline_made_of_it_draws(canvas, guidance):
    start = noise(canvas.model.latent_shape, [1, 2])
    theirs = drawn_by(pipe_of(canvas), PROMPTS, start, guidance)
    ours = drawn_by_ours(canvas.model, canvas.task, canvas.data.tokenizer, PROMPTS, start, guidance)
    assert (ours - theirs).abs().max() < 1e-4
    assert float(ours.std()) > 0.01


def test_images_and_latents_are_those_of_the_source(canvas):
    ids = [0, 5]
    images, latents = canvas.source.images(ids), canvas.data.subset(ids).column("inputs")
    assert torch.allclose(canvas.model.encode(images), latents, atol=1e-5)
    assert torch.allclose(canvas.model.decode(latents), images, atol=1e-5)


def test_plain_diffusers_loads_what_was_saved_and_draws_the_same(canvas, tmp_path):
    start = noise(canvas.model.latent_shape, [1, 2])
    expunge.save(canvas.model, tmp_path, canvas.data.tokenizer, canvas.task)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    expected = drawn_by(pipe_of(canvas), PROMPTS, start)
    assert torch.equal(drawn_by(pipe, PROMPTS, start), expected)
    model = expunge.load(tmp_path)
    assert not model.training
    assert model.task == Diffusion(prediction="velocity", schedule="cosine")
    ours = drawn_by_ours(model, model.task, model.companions.tokenizer, PROMPTS, start)
    assert (ours - expected).abs().max() < 1e-4
    built = config.build(models, {"kind": "pipeline", "path": str(tmp_path)})()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), built.parameters(), strict=True))


def test_a_pipeline_of_plain_diffusers_goes_through_unlearning_and_comes_back(canvas, small_vae, tmp_path):
    """Another scheduler, an autoencoder with weights: all but the two networks comes back as it was."""
    scheduler = diffusers.PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True
    )
    given = pipe_of(canvas, vae=small_vae, scheduler=scheduler)
    given.save_pretrained(tmp_path / "in")
    model = pretrained_pipeline(tmp_path / "in")
    task = model.task
    assert task == Diffusion(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    split = expunge.Split.from_ids(canvas.data, [0, 1])
    before = copy.deepcopy(model.state_dict())
    result = GradDiff(epochs=1, batch_size=2).unlearn(model, split, task, Session(seed=0))
    expunge.save(result, tmp_path / "out")
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(back) is type(given)
    assert isinstance(back.scheduler, diffusers.PNDMScheduler)
    assert isinstance(back.vae, diffusers.AutoencoderKL)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[f"vae.{name}"]) for name, value in back.vae.state_dict().items())
    moved = [not torch.equal(value, before[f"unet.{name}"]) for name, value in back.unet.state_dict().items()]
    assert any(moved)
    start = noise((3, 4, 4), [1])
    back.scheduler = diffusers.DDIMScheduler.from_config(
        back.scheduler.config, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )
    theirs = drawn_by(back, PROMPTS[:1], start)
    ours = drawn_by_ours(result, task, canvas.data.tokenizer, PROMPTS[:1], start)
    assert theirs.shape == (1, 3, 8, 8)
    assert (ours - theirs).abs().max() < 1e-4


def test_a_copy_shares_what_is_no_network(canvas):
    model = TextToImage.from_pipeline(pipe_of(canvas))
    found = copy.deepcopy(model)
    assert found.companions is model.companions
    assert found.unet is not model.unet


def test_pipelines_without_what_is_needed_are_refused(canvas):
    unet = config.build(models, {**CLASSES, "conditions": None})().unet
    with pytest.raises(
        Unsupported, match="DDPMPipeline has no text encoder, so no prompts to erase from. Use"
    ):
        TextToImage.from_pipeline(diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()))
    with pytest.raises(ConfigError, match="tokenizer: a pipeline needs a tokenizer"):
        canvas.model.pipeline(task=canvas.task)
    with pytest.raises(ConfigError, match="task: a pipeline needs a noise schedule"):
        canvas.model.pipeline(canvas.data.tokenizer)
    with pytest.raises(ConfigError, match="task: the model came from no pipeline"):
        canvas.model.task  # noqa: B018


def test_captions_longer_than_the_context_are_refused(canvas):
    with pytest.raises(DataError, match="captions have 20 tokens, but the text encoder has 16 positions"):
        canvas.model.encode_text(torch.zeros(1, 20).long())
    with pytest.raises(DataError, match="more than the 16 of the tokenizer"):
        tokenise(canvas.data.tokenizer, ["a circle image " * 10])


def test_folders_that_are_no_pipeline_are_named(canvas, tmp_path):
    with pytest.raises(CheckpointError, match="has no model_index.json, so it is no pipeline of diffusers"):
        pretrained_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"')
    with pytest.raises(CheckpointError, match="cannot be loaded by diffusers"):
        pretrained_pipeline(tmp_path)


def test_the_library_and_its_registry_load_without_diffusers():
    code = (
        "import sys, expunge, expunge.training.models as m, expunge.saved, expunge.training.sampling;"
        "assert 'text_to_image' in m.models.names();"
        "sys.exit(any(name in sys.modules for name in ('diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_modules_with_other_companions_keep_the_guard(canvas):
    """Its hooks are in the text encoder, which both share: without it nothing would say what they do."""
    seot = config.build(methods, {"kind": "seot", "concept": "mosaic"})
    split = Split.from_ids(canvas.data, (canvas.data.column("style") == 1).nonzero()[:, 0])
    guarded = seot.unlearn(canvas.model, split, canvas.task, Session(seed=0))
    again = guarded.of(canvas.data.tokenizer, canvas.task)
    assert again.guard is guarded.guard
    assert again.companions.tokenizer is canvas.data.tokenizer
    assert not hasattr(canvas.model.of(canvas.data.tokenizer), "guard")
    expected, found = dict(guarded.named_parameters()), dict(again.named_parameters())
    assert all(found[name] is value for name, value in expected.items())
