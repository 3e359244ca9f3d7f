"""Networks of our own: shapes, sizes known from the papers, masking, and bad settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge import config
from expunge.errors import CheckpointError, ConfigError, DataError, Unsupported
from expunge.training.checkpoint import save_weights
from expunge.training.models import models
from expunge.training.networks import head_of


def build(kind: str, **fields: object) -> nn.Module:
    torch.manual_seed(0)
    return config.build(models, {"kind": kind, **fields})()


SPECS: list[dict[str, object]] = [
    {"kind": "mlp", "inputs": 192, "outputs": 5, "hidden": [7, 6]},
    {"kind": "small_cnn", "classes": 5, "width": 4},
    {"kind": "resnet20", "classes": 5, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    {"kind": "resnet18", "classes": 5, "width": 4},
    {"kind": "resnet9", "classes": 5, "width": 4, "stride": 2},
    {"kind": "hf_resnet", "classes": 5},
    {"kind": "hf_vit", "classes": 5, "image_size": 8},
]
OTHERS: list[dict[str, object]] = [
    {"kind": "tiny_lm", "vocabulary": 11},
    {"kind": "tiny_denoiser", "inputs": 2, "conditions": 3},
    {"kind": "gan", "image_size": 8, "latent": 3, "width": 2},
    {"kind": "load", "function": "torch.nn:Linear", "arguments": {"in_features": 3, "out_features": 2}},
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["kind"])
def test_classifiers_give_logits_and_expose_their_features(spec: dict[str, object]) -> None:
    if str(spec["kind"]).startswith("hf_"):
        pytest.importorskip("transformers")
    model = config.build(models, spec)().eval()
    captured: list[torch.Tensor] = []
    head = head_of(model)
    head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    output = model(torch.rand(3, 3, 8, 8))
    logits = getattr(output, "logits", output)
    assert logits.shape == (3, 5)
    assert captured[0].shape == (3, head.in_features)
    assert torch.allclose(head(captured[0]), logits)


@pytest.mark.parametrize("spec", SPECS + OTHERS, ids=lambda spec: spec["kind"])
def test_round_trip_and_seeds(spec: dict[str, object]) -> None:
    if str(spec["kind"]).startswith("hf_"):
        pytest.importorskip("transformers")
    built = config.build(models, spec)
    assert config.build(models, config.dump(built)) == built
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.detach().flatten() for p in built().parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_kind_is_tried_here() -> None:
    language = ["causal_lm", "gpt_neox", "llama", "moe"]  # test_language_models.py
    diffusion = ["class_denoiser", "pipeline", "text_to_image"]  # test_diffusion_models.py
    pairs = ["clip_pair"]  # tests/tasks/test_image_text.py
    seeing = ["llava", "vision_language"]  # test_vision_language_models.py
    others = [*language, *diffusion, *pairs, *seeing]
    assert models.names() == sorted([*others, *(str(spec["kind"]) for spec in SPECS + OTHERS)])


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("resnet20", 269_722), ("resnet18", 11_173_962), ("resnet9", 6_573_130)],
)
def test_sizes_are_those_of_the_papers(kind: str, parameters: int) -> None:
    assert sum(p.numel() for p in build(kind, classes=10).parameters()) == parameters


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 33), (2, 1)])
def test_small_cnn_takes_any_image_size(channels: int, side: int) -> None:
    model = build("small_cnn", classes=4, in_channels=channels, width=2).eval()
    assert model(torch.rand(2, channels, side, side)).shape == (2, 4)


def test_normalisation_is_a_setting_and_not_a_weight() -> None:
    plain = build("small_cnn", classes=2, in_channels=1).eval()
    scaled = build("small_cnn", classes=2, in_channels=1, mean=[0.3], std=[0.5]).eval()
    assert plain.state_dict().keys() == scaled.state_dict().keys()
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(scaled(x), plain((x - 0.3) / 0.5), atol=1e-6)


def test_mlp_without_hidden_layers_is_linear() -> None:
    model = build("mlp", inputs=3, outputs=2, hidden=[])
    assert [tuple(p.shape) for p in model.parameters()] == [(2, 3), (2,)]
    with pytest.raises(DataError, match="the mlp takes 3 numbers an example, got 4"):
        model(torch.zeros(1, 4))


def test_language_model_looks_only_back() -> None:
    model = build("tiny_lm", vocabulary=11).eval()
    ids = torch.randint(11, (2, 6))
    changed = ids.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    assert model(ids).shape == (2, 6, 11)
    assert torch.allclose(model(ids)[:, :4], model(changed)[:, :4], atol=1e-6)
    assert not torch.allclose(model(ids)[:, 4:], model(changed)[:, 4:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_language_model_ignores_padding(side: str) -> None:
    model = build("tiny_lm", vocabulary=11).eval()
    ids, pad, kept = torch.randint(11, (2, 5)), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 5)
    parts = [(pad, pad), (ids, kept)] if side == "left" else [(ids, kept), (pad, pad)]
    padded = torch.cat([tokens for tokens, _ in parts], 1)
    mask = torch.cat([mask for _, mask in parts], 1)
    logits = model(padded, attention_mask=mask)
    assert torch.isfinite(logits).all()
    assert torch.allclose(logits[mask.bool()], model(ids).flatten(0, 1), atol=1e-5)


def test_language_model_refuses_more_than_its_context() -> None:
    with pytest.raises(DataError, match="9 tokens do not fit a context of 8"):
        build("tiny_lm", vocabulary=11, context=8)(torch.zeros(1, 9, dtype=torch.long))


def test_denoiser_conditions() -> None:
    model = build("tiny_denoiser", inputs=2, conditions=3)
    x, steps = torch.randn(4, 2), torch.tensor([0, 10, 500, 999])
    none = model(x, steps)
    assert none.shape == (4, 2)
    assert torch.equal(none, model(x, steps, None))
    assert torch.equal(none, model(x, steps, torch.full((4,), 3)))
    assert not torch.allclose(none, model(x, steps, torch.zeros(4, dtype=torch.long)))
    assert build("tiny_denoiser", inputs=2)(x, steps).shape == (4, 2)


def test_weights_are_the_start(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    saved = build("mlp", inputs=3, outputs=2)
    save_weights(saved, path)
    torch.manual_seed(5)
    loaded = config.build(models, {"kind": "mlp", "inputs": 3, "outputs": 2, "weights": str(path)})()
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="does not exist"):
        build("mlp", inputs=3, outputs=2, weights=str(tmp_path / "none.safetensors"))


def test_head_of_other_libraries() -> None:
    model = nn.Module()
    model.fc = nn.Linear(3, 2)
    assert head_of(model) is model.fc
    model.fc = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert head_of(model) is model.fc[1]
    with pytest.raises(Unsupported, match="Sequential has no final linear layer"):
        head_of(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "resnet20", "classes": 0}, "classes: must be at least 1, got 0"),
        ({"kind": "mlp", "inputs": 3, "outputs": 1, "hidden": [0]}, "hidden: must be at least 1"),
        ({"kind": "small_cnn", "classes": 2, "mean": [0.5]}, "mean: needs 3 numbers, one a channel, got 1"),
        (
            {"kind": "small_cnn", "classes": 2, "mean": [0, 0, 0]},
            "std: needs 3 numbers, one a channel, got 0",
        ),
        (
            {"kind": "small_cnn", "classes": 2, "in_channels": 1, "mean": [0], "std": [0]},
            "std: must be positive",
        ),
        (
            {"kind": "tiny_lm", "vocabulary": 5, "width": 10},
            "width: must be a multiple of the 4 heads, got 10",
        ),
        ({"kind": "tiny_denoiser", "inputs": 2, "width": 3}, "width: must be even"),
        ({"kind": "hf_resnet", "classes": 2, "depths": [1]}, "depths: needs one for each of 3 widths"),
        ({"kind": "hf_vit", "classes": 2, "patch_size": 5}, "patch_size: must divide image_size 32, got 5"),
        ({"kind": "hf_vit", "classes": 2, "width": 6}, "width: must be a multiple"),
        (
            {"kind": "load", "function": "os"},
            "expected module:function, for example mymodels:build, got 'os'",
        ),
        (
            {"kind": "load", "function": "no_such:f"},
            "there is no module 'no_such' in .* or among the installed",
        ),
        (
            {"kind": "load", "function": "torch.nn:Liner"},
            "module 'torch.nn' has no function 'Liner'. Did you mean 'Linear'",
        ),
        ({"kind": "load", "function": "os:getcwd"}, "'os:getcwd' returned str; expected a torch nn.Module"),
        (
            {"kind": "load", "function": "torch.nn:Linear", "arguments": {"features": 1}},
            "arguments: 'torch.nn:Linear' cannot be called: missing a required argument: 'in_features'",
        ),
    ],
)
def test_bad_settings(spec: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.build(models, spec)()
    assert "\n" not in str(caught.value)


def test_load_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net_in_cwd.py").write_text(
        "from torch import nn\ndef build(n=2):\n    return nn.Linear(n, n)\n"
    )
    (tmp_path / "net_broken.py").write_text("import no_such_dependency\n")
    (tmp_path / "net_failing.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    path_before = list(sys.path)
    model = build("load", function="net_in_cwd:build", arguments={"n": 4})
    assert isinstance(model, nn.Linear)
    assert model.in_features == 4
    assert sys.path == path_before
    with pytest.raises(
        ConfigError, match="module 'net_broken' needs 'no_such_dependency', which is not installed"
    ):
        build("load", function="net_broken:build")
    with pytest.raises(ConfigError, match="module 'net_failing' cannot be imported: ZeroDivisionError"):
        build("load", function="net_failing:build")


def test_models_and_data_import_no_heavy_packages() -> None:
    heavy = "transformers diffusers peft torchvision timm ray matplotlib sklearn PIL"
    code = (
        "import sys, expunge.data as d, expunge.training.models as m; m.models.names(); d.sources.names();"
        f"print([name for name in '{heavy}'.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
