"""A LLaVA by its sizes: patches counted from the configuration, folders in and out, bad settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from tests.eyes import batch, model, spec, split, task

import expunge
from expunge import config
from expunge.errors import CheckpointError, ConfigError, Unsupported
from expunge.training.models import models
from expunge.training.vision_language_models import Llava, image_tokens


@pytest.mark.parametrize(("size", "patch", "count"), [(8, 4, 4), (16, 4, 16), (12, 3, 16)])
def test_the_number_of_image_tokens_is_that_of_the_patches(size: int, patch: int, count: int) -> None:
    net = spec(image_size=size, patch_size=patch)()
    assert image_tokens(net.config) == count
    ids = torch.tensor([[task().image_token] * count + [5]])
    assert net(ids, pixel_values=torch.zeros(1, 3, size, size)).logits.shape == (
        1,
        count + 1,
        task().vocabulary,
    )


def test_the_class_vector_counts_where_it_is_kept() -> None:
    kept = spec().config()
    kept.vision_feature_select_strategy = "full"
    assert image_tokens(kept) == 5


def test_a_model_without_eyes_has_no_image_tokens() -> None:
    text = config.build(models, {"kind": "llama", "vocabulary": 9, "width": 8, "heads": 2})()
    with pytest.raises(Unsupported, match="does not say how many patches"):
        image_tokens(text.config)


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_shares_the_embedding_or_not(tied: bool) -> None:
    net = spec(tied=tied)()
    assert (net.get_output_embeddings().weight is net.get_input_embeddings().weight) is tied


def test_a_folder_comes_back_by_kind_and_by_load(tmp_path: Path) -> None:
    net, rows = model(), batch(split().forget)
    expunge.save(net, tmp_path, split().forget.tokenizer)
    wanted = task().loss(task().said(net, rows), rows)
    by_kind = config.build(models, {"kind": "vision_language", "path": str(tmp_path)})()
    for found in (by_kind, expunge.load(tmp_path)):
        assert torch.allclose(task().loss(task().said(found, rows), rows), wanted, atol=1e-6)
    half = config.build(models, {"kind": "vision_language", "path": str(tmp_path), "dtype": "bfloat16"})()
    assert next(half.parameters()).dtype == torch.bfloat16


def test_a_folder_of_a_language_model_is_refused(tmp_path: Path) -> None:
    text = config.build(models, {"kind": "llama", "vocabulary": 9, "width": 8, "heads": 2})()
    text.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="LlamaForCausalLM, which sees no pictures"):
        config.build(models, {"kind": "vision_language", "path": str(tmp_path)})()
    with pytest.raises(CheckpointError, match="is not a folder"):
        config.build(models, {"kind": "vision_language", "path": str(tmp_path / "none")})()


def test_the_configuration_survives_a_round_trip() -> None:
    assert config.build(models, config.dump(spec())) == spec()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_token": 20}, "image_token: must be below vocabulary 20"),
        ({"patch_size": 3}, "patch_size: must divide image_size 16, got 3"),
        ({"width": 12}, "width: must be a multiple of 8"),
        ({"vision_width": 10}, "vision_width: must be a multiple of the 4 heads"),
        ({"context": 16}, "context: must be above the 16 tokens of a picture"),
        ({"layers": 0}, "layers: must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Llava(**{"vocabulary": 20, "image_token": 3, **fields})
