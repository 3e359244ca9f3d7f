"""SFD: the two losses by hand on a table of answers, and distillation of a mixture whose score is known."""

from __future__ import annotations

import pytest
import torch
from tests.methods.told import CLASSES, ROWS, split, told
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.sfd import SFD
from expunge.tasks import Classification, Diffusion
from expunge.training.engine import Engine
from expunge.training.one_step import Distilling, one_step
from expunge.training.optim import SGD, AdamW
from expunge.training.sampling import noise, sample
from expunge.training.session import Session

SESSION = Session(seed=0, engine=Engine(device="cpu"))
OWN, KEPT, FREE = (torch.tensor(row) for row in ROWS)
APART = KEPT - OWN
TASK = Diffusion(timesteps=100, conditions=3, prediction="noise", schedule="cosine")
MEANS = [[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]
SPREADS = [0.3, 0.2, 0.4]


class Mixture(nn.Module):
    """The exact noise in draws from ``N(m_c, s_c²)``: ``ε̂ = √(1 − ᾱ) (x_t − √ᾱ m) / (ᾱ s² + 1 − ᾱ)``."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor(MEANS))
        self.spreads = nn.Parameter(torch.tensor(SPREADS).log())
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, timesteps, condition):
        signal, spread = TASK.levels(timesteps, x)
        mean, variance = self.means[condition], (2 * self.spreads[condition]).exp()[:, None]
        return self.dropout(spread * (x - signal * mean) / (signal**2 * variance + spread**2))


def classes(inputs=None):
    targets = torch.arange(3).repeat(64)
    inputs = torch.zeros(len(targets), 2) if inputs is None else inputs
    data = ArrayData({"inputs": inputs, "targets": targets})
    return Split.from_ids(data, data.ids[targets == 0])


def method(**fields):
    options = {"epochs": 1, "batch_size": 32, "optim": AdamW(lr=1e-2, weight_decay=0.0, betas=(0.0, 0.999))}
    return SFD(**{**options, "levels": (0.05, 0.7), **fields})


def test_a_turn_of_each_by_hand_in_sums_and_not_in_means():
    """The table's score is exact, so ``ψ`` stays; ``g`` goes along ``x̂_p(anchor) − x̂_ψ`` over its scale."""
    plain = {"optim": SGD(lr=0.1, momentum=0.0), "batch_size": 2}
    for weight in (0.01, 0.5):
        result = SFD(epochs=1, forget_weight=weight, **plain).unlearn(told(), split(), CLASSES, SESSION).table
        by_hand = OWN + 0.1 * weight * APART / APART.abs().mean()  # a mean would halve the step
        assert torch.allclose(result[0], by_hand, atol=1e-5)
        assert torch.allclose(result[1], KEPT, atol=1e-5)
        assert torch.equal(result[2], FREE)


def test_the_value_is_what_the_formula_says(monkeypatch):
    values, measure = {}, SFD.of_generator

    def seen(self, step, view, under):
        found = measure(self, step, view, under)
        values[under] = found.detach()
        return found

    monkeypatch.setattr(SFD, "of_generator", seen)
    SFD(epochs=1, batch_size=2, alpha=1.2).unlearn(told(), split(), CLASSES, SESSION)
    expected = (1 - 1.2) * APART.square().sum() / APART.abs().mean()
    assert torch.allclose(values["anchor"], expected.expand(2), rtol=1e-3)
    assert torch.allclose(values[""], torch.zeros(2), atol=1e-4)


@pytest.fixture(scope="module")
def distilled():
    return method(epochs=400, forget_weight=1.0).unlearn(Mixture().eval(), classes(), TASK, SESSION)


def draws(model, label, count=2000):
    return one_step(
        model, TASK, torch.full((count,), label), noise((2,), range(count)), batch_size=count
    )  # fmt: skip


@pytest.mark.parametrize(("label", "like"), [(1, 1), (2, 2), (0, 1)])
def test_it_draws_the_mixtures_components_and_the_anchors_for_the_forgotten_one(distilled, label, like):
    images = draws(distilled, label)
    assert torch.allclose(images.mean(0), torch.tensor(MEANS[like]), atol=0.12)
    assert abs(float(images.std(0).mean()) - SPREADS[like]) < 0.08
    before = draws(Mixture(), label)
    assert float(before.std(0).mean()) < 0.6 * SPREADS[label]  # one step of the original is no draw


def test_the_result_draws_in_one_step_and_not_in_many(distilled):
    label = torch.full((500,), 2)
    start = noise((2,), range(500))
    many = sample(distilled, TASK, label, start=start, steps=20, guidance=1)
    right = sample(Mixture(), TASK, label, start=start, steps=20, guidance=1)
    spread = float(draws(distilled, 2).std(0).mean())
    assert abs(float(right.std(0).mean()) - SPREADS[2]) < 0.05
    assert abs(float(many.std(0).mean()) - SPREADS[2]) > 2 * abs(spread - SPREADS[2])


def test_of_the_data_only_the_classes_are_used():
    other = 5 * torch.randn(192, 2, generator=torch.Generator().manual_seed(1))
    first, second = (method().unlearn(Mixture(), classes(x), TASK, SESSION) for x in (None, other))
    assert torch.equal(first.means, second.means)
    assert not torch.equal(first.means, torch.tensor(MEANS))


def test_dropout_is_off_in_all_three_networks():
    plain, dropping = (method().unlearn(Mixture(p).train(), classes(), TASK, SESSION) for p in (0.0, 0.5))
    assert torch.equal(plain.means, dropping.means)
    heard = method(mode="train").unlearn(Mixture(0.5), classes(), TASK, SESSION)
    assert not torch.equal(plain.means, heard.means)


def test_each_network_moves_in_its_own_turn_only(monkeypatch):
    moved, objective = [], SFD.objective

    def watched(self, step):
        parts = (step.model.generator.means, step.model.score.means)
        moved.append([part.detach().clone() for part in parts])
        return objective(self, step)

    monkeypatch.setattr(SFD, "objective", watched)
    method(epochs=2).unlearn(Mixture(), classes(), TASK, SESSION)
    (g0, s0), (g1, s1), (g2, s2), (g3, s3) = moved
    assert torch.equal(g0, torch.tensor(MEANS))  # all three networks begin as the original
    assert torch.equal(s0, torch.tensor(MEANS))
    assert torch.equal(g0, g1)
    assert not torch.equal(s0, s1)
    assert torch.equal(s1, s2)
    assert not torch.equal(g1, g2)
    assert torch.equal(g2, g3)
    assert not torch.equal(s2, s3)


def test_timesteps_are_drawn_from_the_range():
    task = Distilling.of(Diffusion(timesteps=1000, conditions=2), (0.038, 0.712))
    batch = {"ids": torch.arange(4000), "inputs": torch.zeros(4000, 1), "targets": torch.zeros(4000)}
    steps = task.prepare(batch, torch.Generator().manual_seed(0))["timesteps"]
    assert (int(steps.min()), int(steps.max())) == (38, 711)


def test_it_distils_a_real_denoiser_of_classes():
    pytest.importorskip("diffusers")
    from expunge.training.diffusion_models import ClassDenoiserSpec

    model = ClassDenoiserSpec(conditions=2, in_channels=1, image_size=8, channels=(8, 8), groups=4, heads=2)()
    inputs, targets = torch.zeros(8, 1, 8, 8), torch.arange(2).repeat_interleave(4)
    parts = Split.from_ids(ArrayData({"inputs": inputs, "targets": targets}), range(4))
    task = Diffusion(timesteps=50, conditions=2)
    result = SFD(epochs=2, batch_size=4).unlearn(model, parts, task, SESSION)
    images = one_step(result, task, torch.tensor([0, 1]), noise((1, 8, 8), [1, 2]))
    assert images.shape == (2, 1, 8, 8)
    assert result.decode(images).max() <= 1


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        SFD().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="is told nothing"):
        SFD().check(split(), Diffusion(timesteps=10))
    for field in ({"forget_weight": 0.0}, {"start": 0.0}, {"levels": (0.5, 0.5)}):
        with pytest.raises(ConfigError):
            SFD(**field)
