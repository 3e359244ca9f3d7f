"""The four settings are what the other tests take them for."""

import pytest
import torch

from expunge.data import fixed_order
from expunge.training.session import Session


def _mean(setting, model, part, quantity):
    data = getattr(setting.split, part)
    (batch,) = data.batches(fixed_order(len(data), len(data)), device="cpu")
    batch = setting.task.prepare(batch, None)
    with torch.no_grad():
        outputs = setting.task.outputs(model.eval(), batch)
    return float(getattr(setting.task, quantity)(outputs, batch).mean())


@pytest.mark.parametrize("part", ["forget", "retain"])
def test_the_original_has_learnt_the_forget_set_and_the_retain_set(setting, part):
    untrained = _mean(setting, setting.recipe.initial(Session(seed=0)), part, "loss")
    assert _mean(setting, setting.fresh(), part, "loss") < 0.6 * untrained


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_without_unlearning_the_classifier_makes_no_mistake_on_either_part(setting):
    assert _mean(setting, setting.fresh(), "forget", "score") == 1.0
    assert _mean(setting, setting.fresh(), "retain", "score") == 1.0


def test_ids_of_the_two_parts_are_disjoint_and_complete(setting):
    forget, retain = setting.split.forget.ids, setting.split.retain.ids
    assert torch.equal(torch.cat([forget, retain]).sort().values, torch.arange(len(forget) + len(retain)))
