"""DoCo: the game on a table of answers by hand, the projection, and a discriminator that mixes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.canvases import micro
from tests.methods import told as tables
from torch import Tensor, nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient import doco
from expunge.methods.gradient.doco import DoCo, Judge, Surgery, discriminator
from expunge.methods.optimisers.zeroth_order import ZerothOrder
from expunge.tasks import Classification, Diffusion
from expunge.training.engine import Engine
from expunge.training.loop import optimise
from expunge.training.optim import SGD
from expunge.training.scope import Everything
from expunge.training.session import Session

SESSION = Session(seed=0)
ROWS = torch.tensor(tables.ROWS)
PLAIN = {
    "scope": Everything(), "optim": SGD(lr=0.3, momentum=0.0), "batch_size": 4, "steps": 1, "warm_up": 0,
    "judge_lr": 0.01,
}  # fmt: skip


class Pixel(tables.Told):
    """``f(x, t, c) = E_c`` as an image of one pixel with two channels."""

    def forward(self, x: Tensor, timesteps: Tensor, condition: Tensor | None) -> Tensor:
        return super().forward(x, timesteps, condition)[:, :, None, None]


def pixels() -> Split:
    inputs = torch.tensor([[0.0, 1.0], [0.0, -1.0]]).repeat(4, 1)[:, :, None, None]
    targets = torch.arange(2).repeat_interleave(4)
    return Split.from_ids(ArrayData({"inputs": inputs, "targets": targets}), range(4))


@pytest.fixture
def linear(monkeypatch):
    """A discriminator ``D(z) = wᵀz``."""
    network = nn.Conv2d(2, 1, 1, bias=False)
    network.weight.data[:] = torch.tensor([1.0, 0.5])[None, :, None, None]
    monkeypatch.setattr(doco, "discriminator", lambda *_: network)
    return network


def run(**fields):
    method = DoCo(**{"epochs": 1, **PLAIN, **fields})
    return method.unlearn(Pixel(tables.ROWS).eval(), pixels(), tables.CLASSES, SESSION).table


@pytest.mark.parametrize("prior", [0.0, 1.0, 2.0])
def test_one_step_of_the_model_is_the_gradient_of_fooling_the_discriminator_and_the_priors(linear, prior):
    """``D(E_0) = 1 − 1 = 0``, so that ``∇ −log(1 − σ(D)) = w / 2``. The prior's gradient is of class 1 alone,
    whose inputs have mean 0: ``E_1``."""
    weight = linear.weight.detach().flatten().clone()
    found = run(prior=prior)
    assert torch.allclose(found[0], ROWS[0] - 0.3 * weight / 2, atol=1e-6)
    assert torch.allclose(found[1], ROWS[1] - 0.3 * prior * ROWS[1], atol=1e-6)
    assert torch.equal(found[2], ROWS[2])


def test_the_discriminator_learns_to_tell_the_concept_by_the_model_from_the_anchor_by_the_original():
    """``∇_w = σ(wᵀa) a − σ(−wᵀc) c``, a mean over examples."""
    network = nn.Conv2d(2, 1, 1, bias=False)
    weight = network.weight.detach().flatten().clone()
    anchor, concept = ROWS[1], ROWS[0]
    judge = Judge(network, 0.01, tables.CLASSES)
    for count in (1, 3):  # chunks of one batch
        judge.watch(anchor[None, :, None, None].expand(count, -1, 1, 1), concept[None, :, None, None].expand(
            count, -1, 1, 1))  # fmt: skip
    wanted = torch.sigmoid(weight @ anchor) * anchor - torch.sigmoid(-weight @ concept) * concept
    assert torch.allclose(network.weight.grad.flatten(), 4 * wanted, atol=1e-5)
    judge.learn()
    assert torch.allclose(network.weight.detach().flatten(), weight - 0.01 * wanted.sign(), atol=1e-4)
    assert (judge.examples, judge.steps) == (0, 1)


def test_in_the_warm_up_the_discriminator_alone_learns(linear):
    before = linear.weight.detach().clone()
    heavy = {**PLAIN, "optim": SGD(lr=0.3, momentum=0.9, weight_decay=0.5)}
    method = DoCo(epochs=4, **{**heavy, "warm_up": 0.75})
    plan = method.plan(Pixel(tables.ROWS).eval(), pixels(), tables.CLASSES, SESSION)
    warm = replace(plan, epochs=3)
    found = optimise(Pixel(tables.ROWS).eval(), warm, tables.CLASSES, SESSION)
    assert torch.equal(found.table, ROWS)  # neither decay nor momentum moves it
    assert not torch.equal(linear.weight, before)
    assert plan.state.steps == 3


def surgery(**fields):
    judge = Judge(nn.Conv2d(1, 1, 1), 0.1, tables.CLASSES)
    return Surgery(**{"judge": judge, "warm_up": 0, "strength": 1.0, "prior": 1.0, "definition": "corrected",
                      **fields})  # fmt: skip


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_what_is_taken_out_is_the_conflict_whatever_the_size_of_the_gradient(scale):
    forget, retain = scale * torch.tensor([3.0, -4.0]), torch.tensor([0.0, 2.0])
    found = surgery().cut(forget, retain)
    assert torch.allclose(found, scale * torch.tensor([3.0, 0.0]), atol=1e-6 * scale)


def test_on_the_unit_scale_small_gradients_turn_along_the_retain_gradient_and_large_ones_stay():
    """Trap of the authors' code: ``g − ⟨ĝ, b̂⟩ b̂``, ``⟨ĝ, b̂⟩ = −0.8`` whatever the length of ``g``."""
    theirs, retain = surgery(definition="conformance"), torch.tensor([0.0, 2.0])
    small = theirs.cut(torch.tensor([0.03, -0.04]), retain)
    assert torch.allclose(small, torch.tensor([0.03, 0.76]))
    large = theirs.cut(torch.tensor([300.0, -400.0]), retain)
    assert torch.allclose(large, torch.tensor([300.0, -399.2]))
    unit = torch.tensor([0.6, -0.8])
    assert torch.allclose(theirs.cut(unit, retain), surgery().cut(unit, retain))


def test_only_conflicts_are_cut_tensor_by_tensor_and_the_prior_is_added():
    terms = {
        "forget": {"a": torch.tensor([1.0, -1.0]), "b": torch.tensor([1.0]), "c": torch.tensor([5.0])},
        "retain": {"a": torch.tensor([0.0, 3.0]), "b": torch.tensor([2.0]), "d": torch.tensor([7.0])},
    }
    found = surgery(prior=0.5).gradients(terms, None, None)
    assert {n: g.tolist() for n, g in found["forget"].items()} == {"a": [1.0, 0.0], "b": [1.0], "c": [5.0]}
    assert {n: g.tolist() for n, g in found["retain"].items()} == {"a": [0.0, 1.5], "b": [1.0], "d": [3.5]}
    assert surgery(prior=0.0).gradients(terms, None, None)["retain"] == {}


def test_a_verdict_does_not_depend_on_the_other_images_of_the_batch():
    """BatchNorm, as in the authors' discriminator, would mix the noise levels of a batch."""
    torch.manual_seed(0)
    network, images = discriminator(3, 4), torch.randn(4, 3, 8, 8)
    assert network(images).shape == (4, 1, 2, 2)
    company = torch.cat([images[:1], 10 * images[1:]])
    assert torch.equal(network(images)[0], network(company)[0])
    mixing = nn.Sequential(network[0], nn.BatchNorm2d(4))
    assert not torch.allclose(mixing(images)[0], mixing(company)[0])


def test_halves_of_a_batch_add_up():
    halves = Session(seed=0, engine=Engine(accumulate=2))
    method = DoCo(epochs=3, **PLAIN)
    results = [
        method.unlearn(Pixel(tables.ROWS).eval(), pixels(), tables.CLASSES, session).table
        for session in (SESSION, halves)
    ]
    assert torch.allclose(*results, atol=1e-5)


def test_it_runs_on_captions_and_the_seed_decides():
    made = micro()
    parts = Split.from_ids(made.data, made.data.ids[made.data.column("style") == 1])
    method = DoCo(epochs=2, batch_size=6, warm_up=0.5, steps=2, width=4)
    first, again, other = (
        method.unlearn(made.model, parts, made.task, Session(seed=seed)).state_dict() for seed in (0, 0, 1)
    )
    moved = [name for name, value in made.model.state_dict().items() if not torch.equal(value, first[name])]
    assert moved
    assert all(".attn2." in name for name in moved)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_what_it_cannot_run_on_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        DoCo().check(pixels(), Classification(2))
    with pytest.raises(Unsupported, match="is told nothing"):
        DoCo().check(pixels(), Diffusion(timesteps=10))
    with pytest.raises(Unsupported, match=r"judges images \(N, C, H, W\), got inputs \(4, 2\). Use sa"):
        DoCo().check(tables.split(), tables.CLASSES)
    with pytest.raises(Unsupported, match="projects gradients.*Use adamw or sgd"):
        DoCo(optim=ZerothOrder()).check(pixels(), tables.CLASSES)


@pytest.mark.parametrize(
    "field",
    [
        {"strength": -1.0},
        {"prior": -1.0},
        {"warm_up": -0.1},
        {"warm_up": 1},
        {"judge_lr": 0.0},
        {"width": 0},
        {"samples": 0},
    ],
)
def test_bad_settings_are_refused(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        DoCo(**field)
