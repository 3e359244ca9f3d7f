import pytest
import torch
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError
from expunge.methods.edits.ssd import SSD
from expunge.tasks import Regression
from expunge.training.engine import Engine
from expunge.training.session import Session


def _run(method, forget, retain, session=None):
    """``f(x) = 2 x_1 + 3 x_2``; the rows are ``(x_1, x_2, y)``, the gradient of one is ``(f(x) − y) x``."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 3.0]]))
    rows = torch.tensor(forget + retain)
    split = Split.from_ids((rows[:, :2], rows[:, 2:]), range(len(forget)))
    result = method.unlearn(model, split, Regression(), session or Session())
    return result.weight.detach()[0]


# One example to forget moves w_1 only (gradient 1), three to retain move w_2 only (gradient 1).
FORGET = [(1.0, 0.0, 1.0)]
RETAIN = [(0.0, 1.0, 2.0)] * 3


def test_importance_of_one_quarter_shrinks_the_weight_to_one_quarter():
    # I_f = (1, 0), I_D = (1/4, 3/4): w_1 is selected for every alpha below 4.
    assert torch.equal(_run(SSD(alpha=3.9, batch_size=1), FORGET, RETAIN), torch.tensor([0.5, 3.0]))


def test_a_weight_at_the_threshold_is_not_selected():
    assert torch.equal(_run(SSD(alpha=4.0, batch_size=1), FORGET, RETAIN), torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize(("dampening", "expected"), [(0.5, 0.25), (2.0, 1.0), (4.0, 2.0), (40.0, 2.0)])
def test_dampening_scales_the_factor_and_never_lets_a_weight_grow(dampening, expected):
    weights = _run(SSD(alpha=2.0, dampening=dampening, batch_size=1), FORGET, RETAIN)
    assert torch.equal(weights, torch.tensor([expected, 3.0]))


def test_a_weight_that_nothing_depends_on_stays_without_a_division_by_zero():
    idle = [(0.0, 0.0, 1.0)] * 2
    assert torch.equal(_run(SSD(alpha=0.1, batch_size=1), idle, RETAIN), torch.tensor([2.0, 3.0]))


def test_the_batch_size_decides_because_the_mean_gradient_is_squared():
    opposed = [(1.0, 0.0, 1.0), (1.0, 0.0, 3.0)]  # gradients +1 and −1
    alone, together = (_run(SSD(alpha=1.5, batch_size=size), opposed, RETAIN[:2]) for size in (1, 2))
    assert torch.equal(alone, torch.tensor([1.0, 3.0]))  # I_f = 1, I_D = 2/4
    assert torch.equal(together, torch.tensor([2.0, 3.0]))  # they cancel: I_f = 0


def test_the_batches_of_all_data_mix_the_forget_set_with_the_rest():
    # One batch of all eight: its mean gradient for w_1 is 4/8, so I_D = 1/4 and I_f / I_D = 4. Batches of
    # either kind alone would give I_D = 1/2, and no alpha of 2 or more could select anything.
    assert torch.equal(
        _run(SSD(alpha=3.9, batch_size=8), FORGET * 4, RETAIN[:1] * 4), torch.tensor([0.5, 3.0])
    )
    assert torch.equal(
        _run(SSD(alpha=4.0, batch_size=8), FORGET * 4, RETAIN[:1] * 4), torch.tensor([2.0, 3.0])
    )


def test_parts_of_different_data_sets_cannot_be_joined():
    from expunge.data import ArrayData
    from expunge.errors import DataError

    a, b = (ArrayData({"inputs": torch.ones(4, 2), "targets": torch.ones(4, 1)}) for _ in range(2))
    with pytest.raises(DataError, match=r"no parts of one data set"):
        SSD().unlearn(nn.Linear(2, 1), Split(a, b), Regression(), Session())


def test_gradients_are_not_split_by_accumulation():
    session = Session(engine=Engine(accumulate=2))
    weights = _run(SSD(alpha=1.5, batch_size=2), [(1.0, 0.0, 1.0), (1.0, 0.0, 3.0)], RETAIN[:2], session)
    assert torch.equal(weights, torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_weights_only_shrink_and_the_statistics_of_batch_norm_stay(setting):
    method = SSD(alpha=1.0, dampening=0.5, batch_size=4)
    result = method.unlearn(setting.fresh().train(), setting.split, setting.task, setting.session)
    before, after = setting.original.state_dict(), result.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    weights = dict(result.named_parameters())
    assert all((weights[name].abs() <= p.abs()).all() for name, p in setting.original.named_parameters())
    assert any((weights[name] != p).any() for name, p in setting.original.named_parameters())


@pytest.mark.parametrize("fields", [{"alpha": 0.0}, {"dampening": -1.0}, {"batch_size": 0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        SSD(**fields)
