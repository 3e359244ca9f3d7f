"""Causal language models: sizes, saving with tied weights, checkpoints of Hugging Face, bad settings."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge import config
from expunge.data import ArrayData
from expunge.errors import CheckpointError, ConfigError
from expunge.methods.scopes.lora import LoRA
from expunge.tasks import CausalLM
from expunge.training.checkpoint import load_weights, read_weights, save_weights
from expunge.training.engine import Engine
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.models import models
from expunge.training.optim import AdamW
from expunge.training.session import Session

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)

SIZES = {"vocabulary": 11, "width": 8, "layers": 2, "heads": 2, "mlp": 12, "context": 16}
KINDS = ("llama", "gpt_neox", "moe")
IDS = torch.arange(14).view(2, 7) % 11


def build(kind: str, seed: int = 0, **fields: object) -> nn.Module:
    torch.manual_seed(seed)
    return config.build(models, {"kind": kind, **SIZES, **fields})()


def expected(kind: str, tied: bool) -> int:
    """Parameters, counted by hand: V vocabulary, D width, M mlp, E experts, of two layers."""
    v, d, m, e = 11, 8, 12, 4
    if kind == "gpt_neox":
        layer = 3 * d * d + 3 * d + d * d + d + 2 * d * m + m + d + 4 * d
        norm = 2 * d
    else:
        mlp = 3 * d * m if kind == "llama" else e * 3 * d * m + e * d
        layer, norm = 4 * d * d + mlp + 2 * d, d
    return v * d * (1 if tied else 2) + 2 * layer + norm


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_tying_and_the_round_trip_through_a_file(kind: str, tied: bool, tmp_path: Path) -> None:
    model, other = build(kind, tied=tied).eval(), build(kind, seed=1, tied=tied).eval()
    assert sum(p.numel() for p in model.parameters()) == expected(kind, tied)
    logits = model(IDS).logits
    assert logits.shape == (2, 7, 11)
    assert not torch.allclose(logits, other(IDS).logits)
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    assert torch.equal(logits, other(IDS).logits)
    shared = other.get_input_embeddings().weight is other.get_output_embeddings().weight
    assert shared is tied
    kept = sum(t.numel() for t in read_weights(tmp_path / "model.safetensors").values())
    assert kept == expected(kind, tied)  # a tied tensor is written once


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_keeps_its_weights_tied(kind: str) -> None:
    copy = Engine(device="cpu").copy(build(kind))
    assert copy.get_input_embeddings().weight is copy.get_output_embeddings().weight


@pytest.mark.parametrize("kind", KINDS)
def test_models_look_back_only_ignore_padding_and_drop_nothing(kind: str) -> None:
    model = build(kind).train()
    changed = IDS.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    logits = model(IDS).logits
    assert torch.allclose(logits[:, :4], model(changed).logits[:, :4], atol=1e-6)
    assert not torch.allclose(logits[:, 4:], model(changed).logits[:, 4:])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]]).repeat(2, 1)
    assert torch.allclose(model(IDS, attention_mask=mask).logits[:, :4], logits[:, :4], atol=1e-6)
    assert torch.equal(logits, model.eval()(IDS).logits)  # no dropout, no noise in a router


def test_the_router_and_the_experts_of_a_mixture() -> None:
    model = build("moe", experts=3, active=1).eval()
    seen: list[torch.Tensor] = []
    model.get_submodule("model.layers.1.mlp.gate").register_forward_hook(
        lambda module, inputs, output: seen.append(output[0])
    )
    routed = model(IDS, output_router_logits=True).router_logits
    assert [tuple(logits.shape) for logits in routed] == [(14, 3), (14, 3)]
    assert torch.equal(seen[0], routed[1])
    parameters = dict(model.named_parameters())
    assert parameters["model.layers.1.mlp.experts.gate_up_proj"].shape == (3, 24, 8)
    assert parameters["model.layers.1.mlp.experts.down_proj"].shape == (3, 8, 12)
    used = set(routed[1].argmax(-1).tolist())
    before = model(IDS).logits
    for expert in range(3):
        changed = build("moe", experts=3, active=1).eval()
        with torch.no_grad():
            changed.get_submodule("model.layers.1.mlp.experts").down_proj[expert] = 0
        assert torch.equal(before, changed(IDS).logits) is (expert not in used)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_of_plain_transformers_code(tmp_path: Path, dtype: str) -> None:
    made = build("llama")
    made.save_pretrained(tmp_path)
    loaded = config.build(models, {"kind": "causal_lm", "path": tmp_path, "dtype": dtype})()
    assert {str(p.dtype) for p in loaded.parameters()} == {f"torch.{dtype}"}
    assert not loaded.training
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    frequencies = loaded.get_submodule("model.rotary_emb").inv_freq
    assert frequencies.dtype == torch.float32  # rounded, they would turn positions by the wrong angle
    tolerance = 1e-6 if dtype == "float32" else 0.02
    assert torch.allclose(loaded(IDS).logits.float(), made.eval()(IDS).logits, atol=tolerance)


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder. Give one that save_pretrained wrote"):
        config.build(models, {"kind": "causal_lm", "path": tmp_path / "none"})()
    with pytest.raises(CheckpointError, match="without config.json"):
        config.build(models, {"kind": "causal_lm", "path": tmp_path})()


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantised_weights_say_what_they_need(
    tmp_path: Path, bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.training.language_models.find_spec", lambda name: None)
    spec = config.build(models, {"kind": "causal_lm", "path": tmp_path, "quantised": bits})
    with pytest.raises(ConfigError, match=f"quantised: {bits} weights need bitsandbytes.*pip install"):
        spec()


@pytest.mark.parametrize(("bits", "error"), [("8bit", 0.03), ("4bit", 0.3)])
def test_quantised_weights_answer_alike_and_carry_adapters(
    tmp_path: Path, bits: str, error: float, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    made = build("llama", vocabulary=32, width=64, heads=4, mlp=64, tied=False).eval()
    made.save_pretrained(tmp_path)
    model = config.build(models, {"kind": "causal_lm", "path": tmp_path, "quantised": bits})()
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert type(layer).__name__ == {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[bits]
    assert layer.weight.dtype == {"8bit": torch.int8, "4bit": torch.uint8}[bits]
    with torch.no_grad():
        expected, found = made(IDS).logits, model(IDS).logits.float()
    assert 0 < (found - expected).norm() / expected.norm() < error

    columns = {"input_ids": IDS, "labels": IDS.clone(), "attention_mask": torch.ones_like(IDS)}
    losses: list[float] = []
    plan = Plan(
        what="adapters",
        objective=lambda step: {"loss": step.retain.loss.mean()},
        parts={"retain": ArrayData(columns)},
        passes=lambda epoch: (Pass("retain"),),
        epochs=5,
        batch_size=2,
        optim=AdamW(lr=0.01),
        scope=LoRA(rank=2),
    )
    session = Session(callbacks=(lambda event: losses.extend(event.values.values()),))
    optimise(model, plan, CausalLM(32), session)
    assert losses[-1] < losses[0] - 0.2
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("llama", {"vocabulary": 0}, "vocabulary: must be at least 1, got 0"),
        ("llama", {"width": 10}, "width: must be a multiple of 4, twice the heads, got 10"),
        ("gpt_neox", {"mlp": 0}, "mlp: must be at least 1, got 0"),
        ("moe", {"active": 5}, "active: must be at most experts 4, got 5"),
    ],
)
def test_bad_sizes(kind: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(kind, **fields)


@pytest.mark.parametrize("kind", [*KINDS, "causal_lm"])
def test_configuration_round_trip(kind: str) -> None:
    fields = {"path": "somewhere"} if kind == "causal_lm" else SIZES
    spec = config.build(models, {"kind": kind, **fields})
    assert config.build(models, config.dump(spec)) == spec


def test_looking_up_names_does_not_import_transformers() -> None:
    code = (
        "import sys; from expunge.training.models import models; from expunge.data import sources;"
        "assert 'llama' in models.names() and 'people' in sources.names();"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
