"""Adapt-then-unlearn: the distance and its three forms by hand, and a generator of two values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.gradient.adapt_then_unlearn import AdaptThenUnlearn, Memory, apart, weights_of
from expunge.tasks import GAN, Classification
from expunge.training.engine import Engine
from expunge.training.gan_models import Gan
from expunge.training.optim import SGD, AdamW
from expunge.training.scope import Everything
from expunge.training.session import Session

SESSION = Session(seed=0, engine=Engine(device="cpu"))
TASK = GAN(latent=1)


class Sides(nn.Module):
    """``G(z) = w tanh(5 z) + b``: with ``w = 1``, ``b = 0`` about as often −1 as 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor([1.0, 1.0])), nn.Parameter(torch.zeros(1))

    def forward(self, z):
        return self.w.mean() * torch.tanh(5 * z) + self.b


def gan():
    torch.manual_seed(0)
    return Gan(Sides(), nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), 1)


def split():
    inputs = torch.tensor([[-1.0], [-0.9], [1.0], [0.9]])
    return Split.from_ids(ArrayData({"inputs": inputs}), [0, 1])


def method(**fields):
    options = {"epochs": 2, "adapt_epochs": 2, "models": 2, "samples": 64, "fisher_samples": 4}
    return AdaptThenUnlearn(**{**options, "optim": AdamW(lr=0.02, weight_decay=0.0), **fields})


def moved(by_w=0.0, by_b=0.0):
    found = weights_of(gan())
    return {"generator.w": found["generator.w"] + by_w, "generator.b": found["generator.b"] + by_b}


def test_the_distance_is_a_mean_over_tensors_and_over_adapted_models_and_not_their_sum():
    one, other = moved(by_w=2.0), moved(by_b=1.0)
    assert apart(gan(), [one]).item() == (4 + 0) / 2  # of tensors: not of their three numbers
    assert apart(gan(), [one, other]).item() == (4 + 0 + 0 + 1) / 4
    for count in (1, 2, 5):  # the published code multiplies by count / 2 and sums: 1, 4, 25 times as much
        assert apart(gan(), [one] * count).item() == 2.0


@pytest.mark.parametrize(
    ("form", "weight", "value"),
    [
        ("inverse", None, 0.5 / 2),
        ("negative", None, -0.5 * 2),
        ("exponential", None, 100 * math.exp(-0.5 * 2)),
        ("exponential", 3.0, 3 * math.exp(-0.5 * 2)),
    ],
)
def test_the_three_forms_fall_as_the_weights_part(form, weight, value):
    repels = method(form=form, gamma=0.5, weight=weight).repulsion
    assert repels(gan(), [moved(by_w=2.0)]).item() == pytest.approx(value)
    assert repels(gan(), [moved(by_w=3.0)]).item() < value


def test_the_information_is_of_the_discriminators_word_on_single_images():
    """``∂ log σ(D(G(z))) / ∂b = σ(−D) D'``, with ``D(x) = 2 x``."""
    model = Gan(Sides(), nn.Linear(1, 1, bias=False), 1)
    nn.init.constant_(model.discriminator.weight, 2.0)
    labelled = method().labelled(model, split(), TASK, SESSION)
    found = method()._fisher(model, labelled, TASK, SESSION)
    latents = TASK.prepare({"ids": torch.arange(4), "inputs": torch.zeros(4, 1)}, None)["latents"]
    images = model.generator(latents).detach()
    assert found.keys() == {"generator.w", "generator.b"}
    assert torch.allclose(found["generator.b"], (2 * (-2 * images).sigmoid()).square().mean(), rtol=1e-5)


def test_the_penalty_is_a_weighted_square_that_holds_the_adaptation_back():
    memory = Memory({name: torch.full_like(v, 3.0) for name, v in moved().items()}, moved(by_w=2.0))
    assert memory.penalty(gan()).item() == 3 * (4 + 4)
    labelled = method().labelled(gan(), split(), TASK, SESSION)
    plain = {"optim": SGD(lr=0.05, momentum=0.0), "adapt_epochs": 5, "models": 1}
    free, held = (
        method(strength=strength, **plain).setup(gan(), labelled, TASK, SESSION) for strength in (0.0, 50.0)
    )
    assert 0 < apart(gan(), held).item() < 0.8 * apart(gan(), free).item()


def test_each_adaptation_has_draws_of_its_own_and_starts_at_the_original():
    labelled = method().labelled(gan(), split(), TASK, SESSION)
    first, second = method().setup(gan(), labelled, TASK, SESSION)
    assert not torch.equal(first["generator.b"], second["generator.b"])
    assert torch.equal(
        first["generator.b"], method(models=1).setup(gan(), labelled, TASK, SESSION)[0]["generator.b"]
    )


def test_feedback_labels_what_the_generator_draws():
    labelled = method(samples=300).labelled(gan(), split(), TASK, SESSION)
    assert (labelled.forget.column("inputs") < 0).all()
    assert (labelled.retain.column("inputs") > 0).all()
    assert len(labelled.forget) + len(labelled.retain) == 300
    told = method(feedback=lambda images: (images[:, 0] > 0.5).float()).labelled(
        gan(), split(), TASK, SESSION
    )
    assert (told.forget.column("inputs") > 0.5).all()


def test_the_data_is_used_for_feedback_alone():
    far = Split.from_ids(ArrayData({"inputs": torch.tensor([[-70.0], [90.0]])}), [0])
    positive = {"feedback": lambda images: images[:, 0] < 0}
    first, second = (method(**positive).unlearn(gan(), parts, TASK, SESSION) for parts in (split(), far))
    assert torch.equal(first.generator.b, second.generator.b)


def test_the_generator_stops_drawing_the_negatives():
    options = {"epochs": 25, "adapt_epochs": 5, "samples": 128, "gamma": 1e-3}
    latents = torch.randn(500, 1, generator=torch.Generator().manual_seed(1))

    def share(model):
        return float((model.generator(latents) < 0).float().mean())

    model = gan()
    result = method(**options).unlearn(model, split(), TASK, SESSION)
    assert 0.4 < share(model) < 0.6
    assert share(result) < 0.1


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        method().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="no generator"):
        method().unlearn(nn.Linear(1, 1), split(), TASK, SESSION)
    for feedback, said in ((lambda x: torch.ones(len(x)), "64 of 64"), (lambda x: x > 0, r"\(64, 1\)")):
        with pytest.raises(DataError, match=said):
            method(feedback=feedback).labelled(gan(), split(), TASK, SESSION)
    for field in ({"feedback": "best"}, {"gamma": 0.0}, {"strength": -1.0}, {"models": 0}):
        with pytest.raises(ConfigError):
            method(**field)

    class Judge(Everything):
        def names(self, model):
            return [name for name in super().names(model) if name.startswith("discriminator.")]

    with pytest.raises(Unsupported, match="Set scope to everything"):
        method(scope=Judge()).unlearn(gan(), split(), TASK, SESSION)
