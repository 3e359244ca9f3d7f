"""What methods promise on language models of transformers, beside what ``test_contract`` runs there."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import TRANSFORMERS, _setting
from tests.methods.test_contract import LANGUAGE, TRAINS, reference, same_bytes, snapshot, unlearn

import expunge
from expunge.errors import Unsupported
from expunge.methods import methods
from expunge.methods.base import Guard
from expunge.methods.guarded import guard_of
from expunge.training.sharding import ShardedModel

DENSE = {"key_space", "needle", "neuron_adjust"}
"""They look at the neurons of a dense feed-forward layer, which a mixture of experts has not."""

SLOW = TRAINS | {"sisa"}
"""They train many models from scratch by the recipe, which one method that does so is enough to show."""

GENERAL = [name for name in methods.names() if name not in SLOW]
in_transformers = pytest.mark.parametrize("setting", TRANSFORMERS, indirect=True)


@in_transformers
@pytest.mark.parametrize("name", GENERAL)
def test_a_method_runs_where_it_can_and_leaves_the_original(name, setting):
    """The general methods run here if they run on the language model that is not of transformers."""
    before = snapshot(setting.original)[0]
    result = reference(name, setting)
    after = snapshot(setting.original)[0]
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    able = name in LANGUAGE or reference(name, _setting("causal_lm")) is not None
    assert (result is not None) == (able and not (setting.name == "moe" and name in DENSE))
    if result is not None:
        state = result.state_dict()
        assert all(torch.isfinite(value).all() for value in state.values())
        assert state.keys() - setting.original.state_dict().keys() or not same_bytes(result, setting.original)


def test_the_methods_for_language_models_of_transformers_are_the_ones_the_contract_names():
    asked = {name for name in GENERAL if methods.get(name).forgets == "examples"}
    runs = {name for name in asked if reference(name, _setting("llama")) is not None}
    anywhere = {name for name in asked if reference(name, _setting("causal_lm")) is not None}
    assert runs - anywhere == set(LANGUAGE)


def answers(model, setting):
    """Five tokens after the question of each forgotten record, greedily."""
    found = []
    for row in setting.split.forget.ids:
        (batch,) = setting.split.forget.subset([int(row)]).batches([torch.tensor([0])], device="cpu")
        first = int((batch["labels"][0] != -100).nonzero()[0])
        ids = batch["input_ids"][:, :first]
        settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
        found += model.generate(input_ids=ids, pad_token_id=0, **settings)[0, first:].tolist()
    return found


@in_transformers
@pytest.mark.parametrize("name", [*LANGUAGE, "grad_diff"])
def test_the_result_survives_saving_and_loading_as_a_folder_and_answers_the_same(name, setting, tmp_path):
    result = reference(name, setting)
    if result is None:
        assert name in DENSE
        return
    expunge.save(result, tmp_path, setting.split.forget.tokenizer)
    loaded = expunge.load(tmp_path)
    assert same_bytes(result, loaded)
    assert answers(result, setting) == answers(loaded, setting)
    if issubclass(methods.get(name), Guard):
        assert guard_of(loaded).method == guard_of(result).method


@pytest.mark.parametrize("setting", ["llama"], indirect=True)
def test_an_ensemble_is_not_saved_as_one_model(setting, tmp_path):
    result = reference("s3t", setting)
    assert isinstance(result, ShardedModel)
    with pytest.raises(Unsupported, match="ShardedModel is no model of transformers"):
        expunge.save(result, tmp_path)


@pytest.mark.parametrize("setting", ["llama"], indirect=True)
def test_what_needs_experts_refuses_a_dense_model(setting):
    assert unlearn("grad_diff", setting, scope={"kind": "expert"}) is None
    assert unlearn("grad_diff", setting, modifiers=[{"kind": "router_anchor"}]) is None


ANSWERS = {"dpo": "alternate", "idk": "idk", "flat": "idk"}


@pytest.mark.parametrize("setting", ["llama"], indirect=True)
@pytest.mark.parametrize("name", ANSWERS)
def test_training_on_other_answers_makes_them_likelier_than_the_true_ones(name, setting):
    result = unlearn(name, setting, epochs=10, optim={"kind": "adamw", "lr": 5e-3})
    (batch,) = setting.split.forget.batches([torch.arange(len(setting.split.forget))], device="cpu")
    other = setting.task.instead(batch, ANSWERS[name])
    margins = []
    for model in (setting.original, result):
        with torch.no_grad():
            told, instead = (
                setting.task.loss(setting.task.said(model, rows), rows) for rows in (batch, other)
            )
        margins.append(float((told - instead).mean()))
    assert margins[1] > margins[0] + 0.5
