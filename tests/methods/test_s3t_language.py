"""S3T on a language model of transformers: adapters on its projections, deletions bit for bit."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from tests.conftest import TRANSFORMERS, Setting, _setting

from expunge.methods.exact.s3t import S3T
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe

METHOD = S3T(
    shards=1,
    slices=2,
    rank=2,
    epochs=1,
    batch_size=4,
    targets=("q_proj", "v_proj"),
    optim=AdamW(lr=0.02, weight_decay=0.0),
    retrain="auto",
)


@functools.cache
def prepared(name: str) -> tuple[Setting, dict[str, torch.Tensor]]:
    setting = _setting(name)
    return setting, METHOD.prepare(setting.split.train(), setting.task, setting.session)


def deployment(name: str, gone=()):
    """In service on all records, or on all but some, trained anew."""
    setting, made = prepared(name)
    train, session = setting.split.train(), replace(setting.session, prepared=made)
    if len(gone):
        train = train.subset(train.ids[~torch.isin(train.ids, torch.tensor(gone))])
        session = replace(setting.session, prepared=None)
    return METHOD.deploy(setting.recipe, train, session)


def equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def of(serving, cell):
    return int(serving.state["ids"][serving.state["cells"] == cell][0])


def stages(state):
    return {name: value for name, value in state.items() if "/" in name}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_deletion_switches_to_stages_that_are_bit_equal_to_those_never_trained_on_the_record(name):
    serving = deployment(name)
    before, one = serving.model, of(serving, 0)
    report = serving.delete([one])
    assert (report.steps, report.served) == (0, ((1,),))
    never = stages(deployment(name, [one]).state)
    left = stages(serving.state)
    assert left
    assert all(torch.equal(value, never[key]) for key, value in left.items())
    assert {key.split("/")[1] for key in never.keys() - left.keys()} == {"0", "0-1", "1-0"}
    assert not equal(serving.model, before)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_used_up_shard_is_retrained_and_bit_equal_to_training_without_the_records(name):
    serving = deployment(name)
    first, second = of(serving, 0), of(serving, 1)
    serving.delete([first])
    report = serving.delete([second])
    assert report.steps == report.full > 0
    fresh = deployment(name, [first, second])
    assert equal(serving.model, fresh.model)
    assert stages(serving.state).keys() == stages(fresh.state).keys()
    assert not torch.isin(torch.tensor([first, second]), serving.state["ids"]).any()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_unlearning_is_the_deletion_from_what_was_prepared(name):
    setting, made = prepared(name)
    session = replace(setting.session, prepared=made)
    result = METHOD.unlearn(setting.original, setting.split, setting.task, session)
    serving = deployment(name)
    serving.delete(setting.split.forget.ids)
    assert equal(result, serving.model)


def test_only_the_adapted_projections_and_the_head_move():
    """A stage has an adapter on its own blocks; the last of a stage's slices adapts the lowest ones."""
    setting, made = prepared("llama")
    moved = {key.removeprefix("0/0-1/").removesuffix(".weight") for key in made if key.startswith("0/0-1/")}
    start = Recipe.initial(setting.recipe, setting.session)
    blocks = METHOD.blocks(start)
    assert blocks == (
        ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"),
        ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"),
    )
    factors = {
        f"{layer}.parametrizations.weight.0.{factor}" for layer in blocks[1] for factor in ("up", "down")
    }
    assert moved == {"lm_head", *factors}


def test_it_serves_a_language_model_as_a_distribution_over_tokens():
    setting, _ = prepared("llama")
    serving = deployment("llama")
    (batch,) = setting.split.retain.batches([torch.arange(3)], device="cpu")
    with torch.no_grad():
        said = setting.task.outputs(serving.model, batch)
        (member,) = serving.model.members
        alone = setting.task.outputs(member, batch)
    torch.testing.assert_close(said, alone.log_softmax(-1))
    torch.testing.assert_close(said.exp().sum(-1), torch.ones(said.shape[:2]))
