"""EraseDiff: closed forms on a table of answers, and the rule that weighs the two gradients."""

from __future__ import annotations

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, ROWS, split, told

from expunge.data import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.erase_diff import Barrier, EraseDiff
from expunge.tasks import Classification, Diffusion
from expunge.training.engine import Engine
from expunge.training.optim import SGD
from expunge.training.scope import Everything
from expunge.training.session import Session

SESSION = Session(seed=0)
PLAIN = {"scope": Everything(), "optim": SGD(lr=0.3, momentum=0.0), "batch_size": 4}
OWN, ANCHOR = torch.tensor(ROWS[0]), torch.tensor(ROWS[1])


def test_the_reference_is_a_weighted_sum_of_both_losses():
    """Retained inputs are ``(0, ±1)`` with mean 0, so that class 1 shrinks; class 0 goes to class 1."""
    method = EraseDiff(epochs=1, variant="reference", forget_weight=0.1, **PLAIN)
    result = method.unlearn(told(), split(), CLASSES, SESSION).table
    assert torch.allclose(result[0], OWN - 0.3 * 0.1 * (OWN - ANCHOR), atol=1e-6)
    assert torch.allclose(result[1], ANCHOR - 0.3 * ANCHOR, atol=1e-6)
    assert torch.equal(result[2], torch.tensor(ROWS[2]))


def test_the_inner_value_has_no_gradient_so_that_the_reference_needs_no_inner_passes():
    first, second = (EraseDiff(epochs=2, variant="reference", inner=k, **PLAIN) for k in (1, 5))
    results = [m.unlearn(told(), split(), CLASSES, SESSION).table for m in (first, second)]
    assert torch.equal(*results)


def test_one_step_of_the_paper_lowers_the_gap_at_the_rate():
    """``f(θ) = ‖E_0 − E_1‖² / 2``; an inner pass takes 0.3 of the difference, so ``q = f (1 − 0.7²)``. The
    gradients are of different rows, so that ``λ = η q / ‖∇f‖²``."""
    result = EraseDiff(epochs=1, inner=1, rate=0.5, **PLAIN).unlearn(told(), split(), CLASSES, SESSION).table
    away = OWN - ANCHOR
    gap = float(away.square().mean()) * (1 - 0.7**2)
    weight = 0.5 * gap / float(away.square().sum())
    assert torch.allclose(result[0], OWN - 0.3 * weight * away, atol=1e-6)
    assert torch.allclose(result[1], ANCHOR - 0.3 * ANCHOR, atol=1e-6)


def test_the_weights_are_taken_up_again_after_the_inner_passes():
    method = EraseDiff(epochs=1, inner=5, rate=1e-9, **PLAIN)
    result = method.unlearn(told(), split(), CLASSES, SESSION).table
    assert torch.allclose(result[0], OWN, atol=1e-6)  # five passes towards the anchor have left no trace


def gradients(**terms):
    return {name: {"w": torch.tensor(values)} for name, values in terms.items()}


@pytest.mark.parametrize(
    ("retain", "forget", "gap", "weight"),
    [
        ([0.0, 1.0], [2.0, 0.0], 4.0, 0.5),  # orthogonal: η q / ‖∇q‖² = 0.5 · 4 / 4
        ([-1.0, 1.0], [2.0, 0.0], 4.0, 1.0),  # against each other: (2 + 2) / 4
        ([3.0, 1.0], [2.0, 0.0], 4.0, 0.0),  # the retain step lowers q enough by itself
        ([-1.0, 1.0], [2.0, 0.0], -7.0, 0.5),  # the minimum is reached: no step may leave it
    ],
)
def test_the_barrier_is_the_least_weight_that_lowers_the_gap_fast_enough(retain, forget, gap, weight):
    barrier = Barrier(rate=0.5)
    barrier.gap.total, barrier.gap.examples = 2 * gap, 2
    found = barrier.gradients(gradients(retain=retain, forget=forget), None, None)
    direction = found["retain"]["w"] + found["forget"]["w"]
    assert torch.allclose(found["forget"]["w"], weight * torch.tensor(forget))
    assert float(direction @ torch.tensor(forget)) >= 0.5 * max(gap, 0.0) - 1e-6
    assert torch.equal(found["retain"]["w"], torch.tensor(retain))


def test_a_forget_gradient_of_zero_is_left_alone():
    barrier = Barrier(rate=0.5)
    barrier.gap.total, barrier.gap.examples = 1.0, 1
    found = barrier.gradients(gradients(retain=[1.0], forget=[0.0]), None, None)
    assert found["forget"]["w"].tolist() == [0.0]


@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_halves_of_a_batch_add_up(variant):
    method = EraseDiff(epochs=2, inner=1, variant=variant, **PLAIN)
    whole = method.unlearn(told(), split(), CLASSES, SESSION).table
    halves = method.unlearn(told(), split(), CLASSES, Session(seed=0, engine=Engine(accumulate=2))).table
    assert torch.allclose(whole, halves, atol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_it_runs_on_captions_and_moves_the_denoiser_alone(variant):
    made = micro()
    parts = Split.from_ids(made.data, made.data.ids[made.data.column("style") == 1])
    method = EraseDiff(epochs=1, inner=1, batch_size=3, variant=variant, optim=SGD(lr=0.1))
    result = method.unlearn(made.model, parts, made.task, SESSION).state_dict()
    before = made.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], result[name])}
    assert moved
    assert all(name.startswith("unet.") for name in moved)


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        EraseDiff().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="is told nothing"):
        EraseDiff().check(split(), Diffusion(timesteps=10))
    for field in ({"inner": 0}, {"rate": 0.0}, {"forget_weight": 0.0}):
        with pytest.raises(ConfigError):
            EraseDiff(**field)
