from dataclasses import replace

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, ROWS, Told, split, told
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.random_labels import RandomLabels
from expunge.methods.gradient.salun import SalUn
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.methods.scopes.denoiser import Denoiser
from expunge.training.loop import Pass, optimise
from expunge.training.optim import SGD
from expunge.training.session import Session

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


TABLE = torch.tensor(ROWS)
ANCHORED = {
    "anchor": "next", "modifiers": (), "batch_size": 4, "optim": SGD(lr=0.3, momentum=0.0), "mode": "eval"
}  # fmt: skip


def _table(epochs=1, task=CLASSES, **fields):
    method = SalUn(epochs=epochs, **{**ANCHORED, **fields})
    return method.unlearn(told(), split(), task, Session(seed=0)).table


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_a_denoiser_of_classes_goes_to_its_own_answer_of_the_anchor_with_a_weighted_retain_loss(weight):
    """Both losses are means over the two elements; retained inputs have mean 0."""
    first = _table(retain_weight=weight)
    assert torch.allclose(first[0], TABLE[0] - 0.3 * (TABLE[0] - TABLE[1]), atol=1e-6)
    assert torch.allclose(first[1], TABLE[1] - 0.3 * weight * TABLE[1], atol=1e-6)
    assert torch.equal(first[2], TABLE[2])


def test_the_target_is_the_current_model_and_not_the_original():
    first, second = _table(), _table(epochs=2)
    assert not torch.equal(first[1], TABLE[1])
    assert torch.allclose(second[0], first[0] - 0.3 * (first[0] - first[1]), atol=1e-6)


class Seen(nn.Module):
    """``f(x, t, c) = x + E_c``."""

    def __init__(self):
        super().__init__()
        self.rows = told().rows

    def forward(self, x, timesteps, condition):
        return x + self.rows(condition)


def test_both_branches_see_the_same_noise_and_no_condition_is_dropped():
    """Then ``x_t`` falls out of the difference, and the step is the one of the table alone."""
    task = replace(CLASSES, dropout={"empty": 0.9})
    result = SalUn(epochs=1, **ANCHORED).unlearn(Seen().eval(), split(), task, Session(seed=0))
    wanted = TABLE[0] - 0.3 * (TABLE[0] - TABLE[1])
    assert torch.allclose(result.rows.weight[0].detach(), wanted, atol=1e-6)


def test_a_random_anchor_is_one_of_the_retained_classes_and_a_function_gives_any():
    inputs, targets = torch.zeros(6, 2), torch.tensor([0, 0, 0, 0, 1, 2])
    three = Split.from_ids(ArrayData({"inputs": inputs, "targets": targets}), range(4))
    task, rows = replace(CLASSES, conditions=3), [*ROWS, [7.0, 7.0]]

    def moved(anchor):
        model = Told(rows).eval()
        method = SalUn(epochs=1, **{**ANCHORED, "anchor": anchor})
        return method.unlearn(model, three, task, Session(seed=0)).table[0] - torch.tensor(rows[0])

    away = torch.tensor(rows[1:3]) - torch.tensor(rows[0])
    parts = torch.linalg.solve(away.T, moved("random") / 0.3)
    assert float(parts.sum()) == pytest.approx(1.0, abs=1e-5)
    assert (parts * 4 - (parts * 4).round()).abs().max() < 1e-4  # so many of the four went to each
    assert (parts > 0.2).all()
    assert torch.allclose(moved(lambda own: own + 2), 0.3 * away[1], atol=1e-5)


def forgotten_alone(method):
    """The table after the pass over the forget set alone."""
    plan = method.plan(told(), split(), CLASSES, Session(seed=0))
    plan = replace(plan, passes=lambda epoch: (Pass("forget"),))
    return optimise(told(), plan, CLASSES, Session(seed=0)).table


def test_without_an_anchor_a_denoiser_forgets_towards_itself_and_teaches_no_other_condition_the_images():
    """Random labels once showed the forget images to the other conditions, which drew them from then on."""
    for cls in (SalUn, RandomLabels):
        method = cls(epochs=1, modifiers=(), batch_size=4, optim=ANCHORED["optim"], mode="eval")
        watched = forgotten_alone(method)
        assert not torch.allclose(watched[0], TABLE[0])
        assert torch.equal(watched[1:], TABLE[1:])


def test_on_captions_masked_weights_keep_every_bit_under_decay_and_momentum():
    made = micro()
    parts = Split.from_ids(made.data, made.data.ids[made.data.column("style") == 1])
    mask = SaliencyMask(keep=0.3, batch_size=6)
    method = SalUn(
        epochs=2, batch_size=6, anchor="next", modifiers=(mask,), scope=Denoiser(part="all"), mode="eval",
        optim=SGD(lr=0.05, momentum=0.9, weight_decay=0.1),
    )  # fmt: skip
    result = method.unlearn(made.model, parts, made.task, Session(seed=1)).state_dict()
    before = dict(made.model.named_parameters())
    inside = {name for name in before if name.startswith("unet.")}
    moved = {name: int((before[name] != result[name]).sum()) for name in before}
    assert all(count == 0 for name, count in moved.items() if name not in inside)
    size = sum(before[name].numel() for name in inside)
    assert 0.2 * size < sum(moved.values()) <= round(0.3 * size)


@pytest.mark.parametrize("setting", ["classification", "regression"], indirect=True)
def test_an_anchor_is_for_denoisers(setting):
    with pytest.raises(Unsupported, match="works on what a denoiser is told.*Use a method for every task"):
        _run(SalUn(anchor="next"), setting)


def test_a_retain_loss_of_no_weight_is_refused():
    with pytest.raises(ConfigError, match="retain_weight"):
        SalUn(retain_weight=0.0)
