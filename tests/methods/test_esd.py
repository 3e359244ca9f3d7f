"""ESD: a closed form on a table of answers, the level of noise that is told, the parts that move."""

from __future__ import annotations

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, ROWS, split, told
from torch import nn

from expunge import seeding
from expunge.data import Split
from expunge.data.arrays import fixed_order
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.esd import ESD, Erasure
from expunge.methods.scopes.denoiser import Denoiser
from expunge.tasks import Classification, Diffusion
from expunge.training.engine import Engine
from expunge.training.optim import SGD
from expunge.training.sampling import noise
from expunge.training.scope import Everything
from expunge.training.session import Session

SESSION = Session(seed=0)
PLAIN = {"scope": Everything(), "optim": SGD(lr=0.3, momentum=0.0), "steps": 5, "batch_size": 4}


def prepared(data, task, count=None):
    (batch,) = data.batches(fixed_order(len(data), 100), device="cpu")
    return task.prepare({name: values[:count] for name, values in batch.items()}, torch.Generator())


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
def test_one_step_goes_towards_the_original_turned_away_from_the_concept(strength):
    method = ESD(epochs=1, negative_guidance=strength, **PLAIN)
    result = method.unlearn(told(), split(), CLASSES, SESSION).table
    own, free = torch.tensor(ROWS[0]), torch.tensor(ROWS[2])
    target = free - strength * (own - free)
    assert torch.allclose(result[0], own - 0.3 * (own - target), atol=1e-6)  # the mean over 2 numbers
    assert torch.equal(result[1:], torch.tensor(ROWS[1:]))


def test_many_steps_end_at_the_target_of_the_original_not_of_the_model_itself():
    result = ESD(epochs=60, **PLAIN).unlearn(told(), split(), CLASSES, SESSION).table
    assert torch.allclose(result[0], 2 * torch.tensor(ROWS[2]) - torch.tensor(ROWS[0]), atol=1e-5)


class OfAPoint(nn.Module):
    """The perfect denoiser of a distribution that is one point."""

    def __init__(self, task, point):
        super().__init__()
        self.task, self.point = task, point

    def forward(self, x, timesteps, condition):
        signal, spread = self.task.levels(timesteps, x)
        return (x - signal * self.point) / spread


@pytest.mark.parametrize("index", range(10))
def test_the_timestep_told_is_the_level_that_the_latents_are_at_and_no_other(index):
    """Of a point ``p`` the sampler keeps the noise ``ε`` it began with: ``z_t = √ᾱ_t p + √(1 − ᾱ_t) ε``."""
    task, point = Diffusion(timesteps=100, conditions=2), torch.tensor([0.3, -0.8])
    erasure = Erasure(OfAPoint(task, point), task, Engine(device="cpu"), 3, 10, 3.0)
    batch = prepared(split().forget, task)
    drawn = erasure.drawn(erasure.original, batch, index)

    def noise_at(latents, timestep):
        signal, spread = task.levels(torch.full((4,), timestep), latents)
        return (latents - signal * point) / spread

    start = noise((2,), [seeding.derive(3, "noise", index, int(id_)) for id_ in batch["ids"]])
    begun, told_level = noise_at(start, 99), int(drawn["timesteps"][0])
    assert torch.allclose(noise_at(drawn["noisy"], told_level), begun, atol=1e-4)
    if told_level < 99:  # the interval above, which the authors' code draws the timestep from
        assert not torch.allclose(noise_at(drawn["noisy"], told_level + 10), begun, atol=1e-2)


def test_pure_noise_is_among_the_levels_and_each_comes_once_in_as_many_steps():
    erasure = Erasure(told(), CLASSES, Engine(device="cpu"), 0, 5, 3.0)
    levels = [erasure.level(index) for index in range(15)]
    assert [sorted(levels[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    batch = prepared(split().forget, CLASSES)
    first = erasure.drawn(told(), batch, levels.index(0))
    assert first["timesteps"].tolist() == [9] * 4
    assert len(first["noisy"].unique(dim=0)) == 4
    assert first["noisy"].shape == noise((2,), range(4)).shape


def test_what_an_example_draws_does_not_depend_on_its_company():
    erasure = Erasure(told(), CLASSES, Engine(device="cpu"), 0, 5, 3.0)
    whole = erasure.drawn(told(), prepared(split().forget, CLASSES), 2)
    half = erasure.drawn(told(), prepared(split().forget, CLASSES, 2), 2)
    assert torch.equal(whole["noisy"][:2], half["noisy"])
    other = erasure.drawn(told(), prepared(split().forget, CLASSES), 3)
    assert not torch.equal(whole["noisy"], other["noisy"])


def test_the_latents_are_those_of_the_model_being_edited():
    erasure = Erasure(told(), CLASSES, Engine(device="cpu"), 0, 5, 3.0)
    batch = prepared(split().forget, CLASSES)
    index = next(i for i in range(5) if erasure.level(i) == 3)
    edited = told()
    edited.rows.weight.data[0] += 1
    assert not torch.allclose(
        erasure.drawn(edited, batch, index)["noisy"], erasure.drawn(told(), batch, index)["noisy"]
    )


def test_the_target_is_the_same_point_in_noise_and_velocity_and_the_errors_differ_by_the_signal():
    task = Diffusion(timesteps=100, conditions=2, prediction="velocity", schedule="cosine")
    erasure = Erasure(told(), task, Engine(device="cpu"), 0, 10, 3.0)
    batch = prepared(split().forget, task)
    target = erasure.target(batch, 1.5)
    own, free = (task.noise_of(task.outputs(told(), b), b) for b in (batch, task.instead(batch, "empty")))
    assert torch.allclose(task.noise_of(target, batch), free - 1.5 * (own - free), atol=1e-5)
    velocity = (task.outputs(told(), batch) - target).square().mean(1)
    in_noise = (own - task.noise_of(target, batch)).square().mean(1)
    left = task.signal_left[batch["timesteps"]]
    assert torch.allclose(in_noise, left * velocity, rtol=1e-3, atol=1e-6)


def canvas_split():
    data = micro().data
    return Split.from_ids(data, data.ids[data.column("style") == 1])


@pytest.mark.parametrize("part", ["cross_attention", "key_value", "rest", "all"])
def test_only_the_chosen_part_of_the_denoiser_moves(part):
    made = micro()
    method = ESD(epochs=1, batch_size=3, steps=2, scope=Denoiser(part=part), optim=SGD(lr=0.1))
    result = method.unlearn(made.model, canvas_split(), made.task, SESSION).state_dict()
    before = made.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], result[name])}
    assert moved
    attending = {name for name in moved if ".attn2." in name}
    assert all(name.startswith("unet.") for name in moved)
    if part == "cross_attention":
        assert attending == moved
        assert any(".to_q." in name for name in moved)
    elif part == "key_value":
        assert all(".attn2.to_k." in name or ".attn2.to_v." in name for name in moved)
    elif part == "rest":
        assert not attending
        edges = ("unet.time_embedding", "unet.conv_out", "unet.conv_norm_out")
        assert not [name for name in moved if name.startswith(edges)]
        assert any(".attn1." in name for name in moved)
        assert any(".resnets." in name for name in moved)
    else:
        assert attending
        assert any(name.startswith("unet.conv_out") for name in moved)


def test_other_captions_are_erased_by_name_and_unknown_ones_refused():
    made, options = micro(), {"epochs": 1, "batch_size": 6, "steps": 2, "optim": SGD(lr=0.1)}
    own = ESD(**options).unlearn(made.model, canvas_split(), made.task, SESSION).state_dict()
    style = (
        ESD(captions="style", **options).unlearn(made.model, canvas_split(), made.task, SESSION).state_dict()
    )
    assert any(not torch.equal(own[name], style[name]) for name in own)
    with pytest.raises(Unsupported, match="the data has no 'artist' captions"):
        ESD(captions="artist", **options).unlearn(made.model, canvas_split(), made.task, SESSION)


def test_what_cannot_be_erased_from_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        ESD().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="is told nothing. Use grad_ascent"):
        ESD().check(split(), Diffusion(timesteps=10))
    with pytest.raises(Unsupported, match="has no cross-attention.*set the scope to everything"):
        ESD(steps=5).unlearn(told(), split(), CLASSES, SESSION)
    with pytest.raises(ConfigError, match="1..10, the task's timesteps"):
        ESD(scope=Everything()).unlearn(told(), split(), CLASSES, SESSION)


@pytest.mark.parametrize("field", [{"negative_guidance": -1.0}, {"steps": 0}, {"guidance": 0.0}])
def test_bad_settings_are_refused(field):
    with pytest.raises(ConfigError):
        ESD(**field)
