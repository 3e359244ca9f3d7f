"""``expunge unlearn`` on the folder of a pipeline that plain diffusers code wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import expunge
from expunge import drawing
from expunge.cli.main import main

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from tests.cli import painters  # noqa: E402

UNLEARN = "unlearn --engine.device cpu --examples 4 --pipeline original --out new"
KEEP = ["--keep", "photo style", "--keep", "sketch style"]
STYLE = ["--concept", "mosaic style"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pipelines")
    painters.pipeline().save_pretrained(place / "original")
    painters.pipeline(attending=False).save_pretrained(place / "deaf")
    painters.pictures(place / "forget", ["a star in mosaic style", "a circle in mosaic style"])
    painters.pictures(place / "retain", ["a star in photo style", "a circle in sketch style"], seed=1)
    return place


@pytest.fixture
def place(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    for name in ("original", "deaf", "forget", "retain"):
        shutil.copytree(folders / name, tmp_path / name)
    return tmp_path


def unlearn(*words: str) -> int:
    return main([*UNLEARN.split(), *words])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_plain_diffusers_draws_with_the_result_and_the_rest_is_byte_for_byte_the_original(place, capsys):
    assert unlearn(*STYLE, *KEEP, "--method", "uce") == 0
    said = capsys.readouterr().out
    assert "caption: mosaic style\n  tokens: <begin> mosaic style <end>\n" in said
    assert "'mosaic style' turns into: 'photo style'" in said
    assert "uce forgot 'mosaic style'" in said
    assert "Changed: unet; all other files are the original's." in said
    before, after = files(place / "original"), files(place / "new")
    assert {name for name in before if before[name] != after[name]} <= {
        "unet/diffusion_pytorch_model.safetensors",
        "unet/config.json",
    }
    assert set(after) - set(before) == {"README.md"}
    old, new = weights(place / "original"), weights(place / "new")
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved
    assert all("attn2.to_k" in name or "attn2.to_v" in name for name in moved)
    assert not torch.allclose(
        painters.drawn(place / "original", "a star in mosaic style"),
        painters.drawn(place / "new", "a star in mosaic style"),
    )
    assert str(place) not in (place / "new" / "unet" / "config.json").read_text()
    card = (place / "new" / "README.md").read_text(encoding="utf-8")
    assert '`uce` was asked to forget "mosaic style"; to be kept: photo style, sketch style.' in card
    assert "It looked at no images." in card


@pytest.mark.parametrize(
    ("words", "anchor"),
    [([], "the empty prompt"), (["--anchor", "photo style"], "photo style"), ([*KEEP], "'photo style'")],
)
def test_what_the_concept_turns_into(place, capsys, words, anchor):
    assert unlearn(*STYLE, *words, "--method", "uce") == 0
    assert f"'mosaic style' turns into: {anchor}\n" in capsys.readouterr().out


def test_prompts_are_those_that_are_given_and_the_seed_decides(place, capsys):
    line = [*STYLE, "--prompt", "a star in {}", "--prompt", "a circle in {}", *KEEP]
    esd = ["--method", "esd", "epochs=1", "batch_size=2", "steps=2", "optim.lr=0.01"]
    found = []
    for seed in ("0", "0", "1"):
        assert unlearn(*line, *esd, "--seed", seed) == 0
        assert "One of 4 prompts to forget, as the model sees it:" in capsys.readouterr().out
        found.append(weights(place / "new"))
    same, other = (
        all(torch.equal(found[0][name], one[name]) for name in one) for one in (found[1], found[2])
    )
    assert same
    assert not other


def test_a_method_that_looks_at_images_has_them_drawn_once(place, capsys, monkeypatch):
    line = [*STYLE, *KEEP, "--method", "grad_diff", "epochs=1", "batch_size=4"]
    assert unlearn(*line) == 2
    assert "grad_diff looks at images, and there are none to forget and to retain" in capsys.readouterr().err
    draw = ["--draw", "--steps", "2", "--guidance", "2"]
    assert unlearn(*line, *draw) == 0
    card = (place / "new" / "README.md").read_text(encoding="utf-8")
    assert "images that the original drew for the prompts, in 2 steps with guidance 2." in card
    first = weights(place / "new")
    monkeypatch.setattr(drawing, "imagined", lambda *_, **__: pytest.fail("drawn again"))
    assert unlearn(*line, *draw) == 0
    assert all(torch.equal(first[name], value) for name, value in weights(place / "new").items())
    assert len(list((place / "cache" / "drawn").iterdir())) == 2


def test_folders_of_captioned_images_tell_the_concept_themselves(place, capsys):
    line = ["--forget", "forget", "--retain", "retain", "--method", "grad_diff", "epochs=1", "batch_size=2"]
    assert unlearn(*line) == 0
    said = capsys.readouterr().out
    assert "One of 2 prompts to forget" in said
    assert "caption: a star in mosaic style" in said
    assert "grad_diff forgot 'mosaic'" in said
    assert "the images that were given" in (place / "new" / "README.md").read_text(encoding="utf-8")


def test_a_guard_is_saved_beside_the_originals_weights_and_says_so(place, capsys):
    assert unlearn(*STYLE, *KEEP, "--method", "seot") == 0
    assert "plain diffusers draws the concept as before" in capsys.readouterr().out
    assert "`from_pretrained` of diffusers draws the concept as" in (place / "new" / "README.md").read_text()
    old, new = files(place / "original"), files(place / "new")
    assert all(old[name] == new[name] for name in old if name != "model_index.json")
    assert torch.equal(painters.drawn(place / "original", "a star"), painters.drawn(place / "new", "a star"))
    plain, guarded = expunge.load(place / "original"), expunge.load(place / "new")
    told = painters.tokenizer()(["a star in mosaic style", "a star in photo style"], padding="max_length")
    ids = torch.tensor(told["input_ids"])
    with torch.no_grad():
        apart = (plain.encode_text(ids) - guarded.encode_text(ids)).abs().amax((1, 2))
    assert apart[0] > 1e-3
    assert apart[1] == 0
    assert main([*UNLEARN.replace("original", "new").split(), *STYLE, "--method", "uce"]) == 2
    assert "'new' is under a guard. Give the pipeline that it was made from." in capsys.readouterr().err


def changed_weights(path: Path, change: Any) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def spoil(place: Path, what: str) -> None:
    """Makes one thing wrong with the folder ``original``, or the image folders."""
    original = place / "original"
    text, unet, vae = (
        original / name for name in (
            "text_encoder/model.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        )
    )  # fmt: skip
    index = json.loads((original / "model_index.json").read_text())
    if what == "truncated":
        unet.write_bytes(unet.read_bytes()[:-100])
    elif what == "no text encoder":
        index["text_encoder"] = [None, None]
        (original / "model_index.json").write_text(json.dumps(index))
    elif what == "no pipeline":
        (original / "model_index.json").unlink()
    elif what == "foreign text encoder":
        changed_weights(text, lambda found: {f"model.{name}": value for name, value in found.items()})
    elif what == "foreign unet":
        changed_weights(unet, lambda found: {f"model.{name}": value for name, value in found.items()})
    elif what == "nan weights":
        changed_weights(unet, lambda found: {n: v * torch.nan for n, v in found.items()})
    elif what == "nan latents":
        changed_weights(vae, lambda found: {n: v * (1e30 if "encoder" in n else 1) for n, v in found.items()})
    elif what == "nothing attends":
        shutil.rmtree(original)
        shutil.copytree(place / "deaf", original)
    elif what == "flow":
        diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(original / "scheduler")
        index["scheduler"][1] = "FlowMatchEulerDiscreteScheduler"
        (original / "model_index.json").write_text(json.dumps(index))
    elif what == "no image":
        (place / "forget" / "0.png").write_text("this is text")


UCE = ["--method", "uce"]
FOLDERS = ["--forget", "forget", "--retain", "retain", "--method", "grad_diff"]


@pytest.mark.parametrize(
    ("what", "words", "said"),
    [
        ("", ["--concept", "van_gogh style", *UCE], "cannot see 'van_gogh' of the concept 'van_gogh style'"),
        ("", ["--concept", "mosaic " * 9, *UCE], "has 14 tokens, more than the 10"),
        (
            "",
            ["--concept", "sketch style", *FOLDERS],
            "the concept 'sketch' is not in the caption 'a star in m",
        ),
        ("", [*STYLE, *UCE, "--prompt", "a star"], "the concept 'mosaic' is not in the caption 'a star'"),
        ("", [*STYLE, *UCE, "--keep", "big mosaic style"], "is to be kept and names the concept"),
        ("", UCE, "concept: say what to forget"),
        ("", [*STYLE, "--method", "grad_ascent"], "looks at images, and there are none to forget. Give"),
        ("", [*STYLE, "--method", "grad_diff", "--draw"], "grad_diff needs something to keep. Give --keep"),
        ("", [*STYLE, *UCE, "--guidance", "0"], "guidance: must be above 0, got 0.0. Use 1 for none"),
        ("", [*STYLE, *UCE, "--steps", "0"], "steps: must be at least 1"),
        ("", [*STYLE, *UCE, "--examples", "0"], "examples: must be at least 1"),
        ("", [*STYLE, *UCE, "--anchor", "next"], "anchor: 'next' is one of the concepts to keep"),
        ("", [*STYLE, "--method", "esd", "--anchor", "photo style"], "anchor"),
        ("", [*STYLE, *UCE, *KEEP, "--retain", "retain"], "keep names concepts and retain has prompts"),
        ("", [*STYLE, *UCE, "--retain", "none.txt"], "cannot read 'none.txt': No such file"),
        ("", [*STYLE, *UCE, "--model", "x"], "pipeline: a pipeline needs no model or experiment beside it"),
        ("", [*STYLE, *UCE, "--out", "original"], "the pipeline that is read is never changed"),
        ("", [*STYLE, "--method", "sfd", *KEEP], "sfd makes a generator of one step"),
        ("", [*STYLE, *UCE, "--scope", "{kind: modules, patterns: [nothing]}"], "nothing"),
        ("no image", FOLDERS, "0.png': it is damaged or no image"),
        ("nan latents", FOLDERS, "autoencoder makes NaN or infinite latents of 'forget/0.png'"),
        ("nan weights", [*STYLE, *UCE], "NaN"),
        ("nothing attends", [*STYLE, *UCE], "has no cross-attention, so it listens to no captions"),
        ("foreign unet", [*STYLE, *UCE], "'original/unet' has no weights for"),
        ("foreign text encoder", [*STYLE, *UCE], "'original/text_encoder' has no weights for"),
        ("no text encoder", [*STYLE, *UCE], "has no text encoder, so no prompts to erase from"),
        ("no pipeline", [*STYLE, *UCE], "has no model_index.json, so it is no pipeline of diffusers"),
        ("truncated", [*STYLE, *UCE], "'original' cannot be loaded by diffusers"),
        ("flow", [*STYLE, *UCE], "Use a scheduler with linear, scaled_linear or squaredcos_cap_v2"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(place, capsys, what, words, said):
    spoil(place, what)
    assert unlearn(*words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (place / "new").exists() or not list((place / "new").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("unlearn --method uce --out new --concept x --model m --forget f", "goes with --pipeline FOLDER"),
        ("unlearn --method uce --out new", "give --model, or --pipeline FOLDER with --concept"),
        ("unlearn --method uce --out new --model original --forget forget", "Give it as --pipeline original"),
    ],
)
def test_options_that_do_not_go_together(place, capsys, line, said):
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err


def test_the_help_teaches(capsys):
    assert main(["unlearn", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("Text-to-image pipelines", "--concept", "--keep", "--draw", "StableDiffusionPipeline"):
        assert part in said
