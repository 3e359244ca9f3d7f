import pytest
import torch
from torch import nn

from expunge.errors import ConfigError
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.modifiers.gru import GRU
from expunge.training.engine import Engine
from expunge.training.optim import SGD
from expunge.training.parameters import inner
from expunge.training.session import Session


def _change(*steps, ema=0.8):
    """What becomes of the term ``forget`` at the last of these ``(forget, retain)`` gradients."""
    gru, optimizer = GRU(ema=ema), torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    state = gru.prepare(None, None, None, None)
    for forget, retain in steps:
        terms = {"forget": {"w": torch.tensor(forget)}, "retain": {"w": torch.tensor(retain)}}
        changed = gru.gradients(terms, state, optimizer)
        assert torch.equal(changed["retain"]["w"], terms["retain"]["w"])
    return changed["forget"]["w"].tolist(), state.mean["w"].tolist()


def test_a_gradient_against_the_retain_gradient_loses_that_part():
    assert _change(([1.0, -1.0], [0.0, 2.0]))[0] == [1.0, 0.0]


def test_one_that_agrees_or_stands_across_stays_bit_for_bit():
    assert _change(([1.0, 0.3], [0.0, 2.0]))[0] == pytest.approx([1.0, 0.3])
    assert _change(([1.0, 0.0], [0.0, 2.0]))[0] == [1.0, 0.0]


def test_the_direction_is_the_running_mean():
    changed, mean = _change(([0.0, 0.0], [4.0, 0.0]), ([-1.0, -1.0], [0.0, 2.0]), ema=0.75)
    assert mean == pytest.approx([3.0, 0.5])
    share = -3.5 / 9.25
    assert changed == pytest.approx([-1.0 - share * 3.0, -1.0 - share * 0.5])


def test_without_memory_it_is_the_last_gradient():
    assert _change(([0.0, 0.0], [4.0, 0.0]), ([-1.0, -1.0], [0.0, 2.0]), ema=0.0)[0] == [-1.0, 0.0]


def test_all_parameters_are_judged_together_and_a_missing_one_counts_as_zero():
    gru, state = GRU(ema=0.0), GRU().prepare(None, None, None, None)
    retain = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}
    agree = {"a": torch.tensor([-1.0]), "b": torch.tensor([1.0])}  # against it in a, with it in sum
    terms = {"forget": agree, "other": {"a": torch.tensor([-5.0])}, "retain": retain}
    changed = gru.gradients(terms, state, None)
    assert changed["forget"] == agree
    assert changed["other"]["a"].tolist() == pytest.approx([-4.0])
    assert changed["other"]["b"].tolist() == pytest.approx([2.0])


def test_the_rectified_gradient_is_never_against_the_retain_direction():
    torch.manual_seed(0)
    gru, rectified = GRU(), 0
    state = gru.prepare(None, None, None, None)
    for _ in range(30):
        draw = {term: {"w": torch.randn(40), "v": torch.randn(3, 5)} for term in ("forget", "retain")}
        changed = gru.gradients(draw, state, None)["forget"]
        lengths = (inner(changed, changed) * inner(state.mean, state.mean)).sqrt()
        if inner(draw["forget"], state.mean) < 0:
            rectified += 1
            assert abs(inner(changed, state.mean)) <= 1e-5 * lengths
        else:
            assert changed["w"] is draw["forget"]["w"]
    assert 5 < rectified < 25


def test_a_step_of_ascent_by_hand(linear):
    """Ascent where the retain gradient comes from a batch that the objective itself does not use."""
    forget, retain = (linear.gradient(linear.start, part) for part in ("forget", "retain"))
    sign = 1.0 if -forget @ retain < 0 else -1.0
    assert sign == 1.0  # ascent raises the retain loss here: there is something to rectify
    expected = -forget + (forget @ retain) / (retain @ retain) * retain
    optim = SGD(lr=0.1, momentum=0.0)
    moved = linear.run(GradAscent(epochs=1, optim=optim, modifiers=(GRU(),))) - linear.start
    assert torch.allclose(moved, -0.1 * expected, atol=1e-6)
    assert abs(float(moved @ retain)) < 1e-6


def test_it_is_right_under_accumulation(linear):
    method = GradDiff(epochs=2, optim=SGD(lr=0.1), retain_weight=0.3, modifiers=(GRU(),))
    whole, parts = (linear.run(method, Session(engine=Engine(accumulate=n))) for n in (1, 3))
    assert torch.allclose(whole, parts, atol=1e-6)


@pytest.mark.parametrize("ema", [-0.1, 1.0])
def test_a_memory_out_of_range_is_refused(ema):
    with pytest.raises(ConfigError, match="ema: is a fraction"):
        GRU(ema=ema)
