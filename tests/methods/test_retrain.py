from dataclasses import replace

import pytest
import torch

from expunge.data import Split
from expunge.errors import MissingEvidence
from expunge.methods.exact.retrain import Retrain
from expunge.training.parameters import shared_tensors
from expunge.training.session import Session


def _run(setting, **changes):
    given = {"model": setting.original, "split": setting.split, "session": setting.session, **changes}
    return Retrain().unlearn(given["model"], given["split"], setting.task, given["session"])


def _equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_no_parameter_of_the_retrained_model_is_the_originals(setting):
    assert shared_tensors(_run(setting), setting.original) == []


def test_it_is_the_recipe_on_the_retain_set(setting):
    expected = setting.recipe.train(setting.split.retain, setting.session.child("retrain"))
    assert _equal(_run(setting), expected)


def test_with_the_seed_of_the_original_it_does_not_start_from_the_original_s_initial_weights(setting):
    model = setting.recipe.initial(setting.session)
    retrained = setting.recipe.initial(setting.session.child("retrain"))
    drawn = [name for name, p in model.named_parameters() if p.ndim > 1]
    assert drawn
    assert not set(drawn) & set(shared_tensors(model, retrained))


def test_neither_the_handed_in_weights_nor_the_forget_set_have_any_influence(setting):
    other = setting.recipe.initial(Session(seed=5))
    few = Split(setting.split.forget.subset(setting.split.forget.ids[:1]), setting.split.retain)
    assert _equal(_run(setting), _run(setting, model=other, split=few))


def test_two_seeds_give_two_models(setting):
    assert shared_tensors(_run(setting), _run(setting, session=replace(setting.session, seed=8))) == []


def test_without_a_recipe_it_says_what_to_give(setting):
    with pytest.raises(MissingEvidence, match=r"retrain needs the recipe .* pass recipe=expunge.Recipe"):
        _run(setting, session=Session())


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_statistics_of_batch_norm_are_new_too(setting):
    retrained = dict(_run(setting).named_buffers())
    statistics = {n: b for n, b in setting.original.named_buffers() if "running" in n}
    assert len(statistics) == 6
    assert not any(torch.equal(retrained[name], value) for name, value in statistics.items())
