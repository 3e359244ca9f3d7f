"""Scopes that go by blocks: the last ones, and the feed-forward layers of all."""

import pytest
import torch
from torch import nn

from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.scopes.feed_forward import FeedForward
from expunge.methods.scopes.last_blocks import LastBlocks
from expunge.methods.scopes.last_layers import LastLayers
from expunge.training.language_models import Llama
from expunge.training.optim import AdamW


def _llama(tied):
    pytest.importorskip("transformers")
    return Llama(vocabulary=11, width=8, layers=3, heads=2, mlp=12, tied=tied).network()


def _outside(names, prefix):
    return [name for name in names if not name.startswith(prefix)]


@pytest.mark.parametrize("tied", [True, False])
def test_the_last_blocks_are_whole_and_what_follows_is_asked_for(tied):
    model = _llama(tied)
    inside = [name for name, _ in model.named_parameters() if name.startswith("model.layers.2.")]
    assert len(inside) == 9  # four of attention, three of the feed-forward layer, two norms
    assert LastBlocks().names(model) == inside
    rest = LastBlocks(rest=True).names(model)
    head = [] if tied else ["lm_head.weight"]
    assert rest == [*inside, "model.norm.weight", *head]
    assert "model.embed_tokens.weight" not in rest


def test_last_layers_counts_matrices_and_a_tied_head_is_the_embedding():
    model = _llama(tied=True)
    assert LastLayers().names(model) == ["model.embed_tokens.weight"]
    assert _outside(LastLayers(count=2).names(model), "model.layers.2.mlp.down_proj") == [
        "model.embed_tokens.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.2.post_attention_layernorm.weight",
        "model.norm.weight",
    ]
    assert LastLayers().names(_llama(tied=False)) == ["lm_head.weight"]


def test_feed_forward_layers_of_every_block_and_nothing_else():
    names = FeedForward().names(_llama(tied=True))
    kinds = ("gate_proj", "up_proj", "down_proj")
    assert names == [f"model.layers.{i}.mlp.{kind}.weight" for i in range(3) for kind in kinds]


@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
@pytest.mark.parametrize(("scope", "prefix"), [(FeedForward(), "blocks.0.mlp."), (LastBlocks(), "blocks.0.")])
def test_what_is_outside_keeps_every_byte(setting, scope, prefix):
    method = GradDiff(epochs=2, batch_size=8, optim=AdamW(lr=0.05, weight_decay=0.5), scope=scope)
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session).state_dict()
    before = setting.original.state_dict()
    moved = {name for name in before if not torch.equal(before[name], result[name])}
    assert moved == {name for name in before if name.startswith(prefix)}


def test_more_blocks_than_there_are_and_frozen_ones_are_refused():
    model = _llama(tied=True)
    with pytest.raises(Unsupported, match="the last 4 blocks of a model that has 3. Set count lower"):
        LastBlocks(count=4).names(model)
    model.requires_grad_(False)
    for scope in (LastBlocks(), FeedForward()):
        with pytest.raises(Unsupported, match="requires a gradient. Choose another scope"):
            scope.names(model)
    with pytest.raises(ConfigError, match="count: must be at least 1"):
        LastBlocks(count=0)


@pytest.mark.parametrize("scope", [LastBlocks(), FeedForward()])
def test_models_without_blocks_are_refused(scope):
    with pytest.raises(Unsupported, match="no list of blocks of one class"):
        scope.names(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
