from dataclasses import replace

import pytest
import torch

from expunge.methods.gradient.random_labels import RandomLabels
from expunge.methods.gradient.salun import SalUn
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.training.optim import SGD

OPTIM = SGD(lr=0.05, weight_decay=0.1)


def _run(method, setting):
    return method.unlearn(setting.original, setting.split, setting.task, setting.session).state_dict()


def test_it_is_random_labels_with_a_saliency_mask_byte_for_byte(setting):
    mask = (SaliencyMask(keep=0.4, batch_size=8),)
    common = {"epochs": 3, "batch_size": 8, "optim": OPTIM, "modifiers": mask}
    first, second = (_run(cls(**common), setting) for cls in (SalUn, RandomLabels))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_by_default_half_of_the_weights_may_move_and_the_rest_keep_every_bit(setting):
    method = SalUn(epochs=3, batch_size=8, optim=OPTIM)
    mask = method.modifiers[0].prepare(setting.fresh(), setting.split, setting.task, setting.session)
    result = _run(method, setting)
    share = sum(int(m.sum()) for m in mask.movable.values()) / sum(m.numel() for m in mask.movable.values())
    assert 0.48 < share < 0.75  # ties and an odd number of weights aside, one half
    for name, movable in mask.movable.items():
        assert torch.equal(result[name][~movable], mask.start[name][~movable])


def test_without_a_mask_every_weight_moves(setting):
    masked = SalUn(epochs=3, batch_size=8, optim=OPTIM)
    bare = _run(replace(masked, modifiers=()), setting)
    before = dict(setting.original.named_parameters())
    assert all((bare[name] != before[name]).any() for name in before)


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_statistics_of_batch_norm_are_not_weights_and_move(setting):
    result = _run(SalUn(epochs=1, batch_size=8), setting)
    statistics = [name for name, _ in setting.original.named_buffers() if "running" in name]
    before = setting.original.state_dict()
    assert all(not torch.equal(result[name], before[name]) for name in statistics)
