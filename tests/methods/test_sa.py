"""SA: the Fisher information of single images, replay, and the penalty, on a table of answers."""

from __future__ import annotations

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, ROWS, Told, split, told

from expunge.data import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.sa import SA, Memory
from expunge.tasks import Classification, Diffusion
from expunge.training.optim import SGD
from expunge.training.parameters import importance
from expunge.training.scope import Everything
from expunge.training.session import Session

SESSION = Session(seed=0)
PLAIN = {"scope": Everything(), "optim": SGD(lr=0.05, momentum=0.0), "steps": 5, "guidance": 3.0}
OWN, KEPT, FREE = (torch.tensor(row) for row in ROWS)
IMAGE = FREE + 3 * (KEPT - FREE)
"""What the table draws for class 1 with guidance 3."""


def test_the_information_squares_the_gradient_of_each_image_and_not_their_sum():
    """Class 1 predicts 0 for the images ``(0, ±1)``: gradients ``∓2`` that cancel when they are added up."""
    model = Told([ROWS[0], [0.0, 0.0], ROWS[2]]).eval()
    fisher = SA(**PLAIN).setup(model, split(), CLASSES, SESSION).fisher["rows.weight"]
    assert torch.equal(fisher, torch.tensor([[0.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
    together = importance(
        model, split().retain, CLASSES, SESSION, names=["rows.weight"], batch_size=4,
        measure=lambda outputs, batch: 2 * CLASSES.loss(outputs, batch),
    )  # fmt: skip
    assert not together["rows.weight"].any()


def test_one_step_is_towards_the_surrogate_and_the_replayed_images_in_sums_of_squares():
    result = SA(epochs=1, **PLAIN).unlearn(told(), split(), CLASSES, SESSION).table
    assert torch.allclose(result[0], OWN - 0.05 * 2 * (OWN - IMAGE), atol=1e-5)  # a sum, not a mean of 2
    assert torch.allclose(result[1], KEPT - 0.05 * 2 * (KEPT - IMAGE), atol=1e-5)
    assert torch.equal(result[2], FREE)


def test_the_penalty_holds_what_the_information_says_and_only_once_it_has_moved():
    options = {**PLAIN, "gamma": 0.5, "strength": 0.02}
    result = SA(epochs=2, **options).unlearn(told(), split(), CLASSES, SESSION).table
    fisher = (2 * (KEPT - IMAGE)).square()
    row = KEPT.clone()
    for _ in range(2):
        row = row - 0.05 * (0.5 * 2 * (row - IMAGE) + 0.02 * 2 * fisher * (row - KEPT))
    assert torch.allclose(result[1], row, atol=1e-4)
    free = SA(epochs=2, **{**options, "strength": 0.0}).unlearn(told(), split(), CLASSES, SESSION).table
    assert (result[1] - KEPT).norm() < (free[1] - KEPT).norm()
    assert torch.allclose(result[0], free[0])  # of the forgotten class there is no information


def test_the_penalty_is_a_weighted_square():
    model = told()
    memory = Memory({"rows.weight": torch.full((3, 2), 2.0)}, {"rows.weight": model.table - 3})
    assert float(memory.penalty(model).detach()) == 6 * 2 * 9


def test_without_weights_the_retained_class_stays():
    result = SA(epochs=1, gamma=0.0, strength=0.0, **PLAIN).unlearn(told(), split(), CLASSES, SESSION).table
    assert torch.equal(result[1:], torch.stack([KEPT, FREE]))


def test_the_surrogate_is_noise_or_what_the_original_draws_for_the_anchor():
    parts = split(200)
    drawn = SA(surrogate="noise", **PLAIN).surrogates(told(), parts, CLASSES, SESSION).column("inputs")
    assert drawn.abs().max() <= 1
    assert abs(float(drawn.mean())) < 0.1
    assert abs(float(drawn.var()) - 1 / 3) < 0.05
    images = SA(**PLAIN).surrogates(told(), split(), CLASSES, SESSION).column("inputs")
    assert torch.allclose(images, IMAGE.expand(4, 2), atol=1e-5)


def test_data_is_replaced_by_replay_of_as_many_samples():
    plan = SA(samples=3, **PLAIN).plan(told(), split(), CLASSES, SESSION)
    assert {name: len(data) for name, data in plan.parts.items()} == {"forget": 3, "retain": 3}
    assert torch.allclose(plan.parts["retain"].column("inputs"), IMAGE.expand(3, 2), atol=1e-5)


def test_it_runs_on_captions_and_moves_the_denoiser_alone():
    made = micro()
    parts = Split.from_ids(made.data, made.data.ids[made.data.column("style") == 1])
    method = SA(epochs=1, batch_size=3, steps=2, samples=3, optim=SGD(lr=1e-4))
    result = method.unlearn(made.model, parts, made.task, SESSION).state_dict()
    before = made.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], result[name])}
    assert moved
    assert all(name.startswith("unet.") for name in moved)


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        SA().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="is told nothing"):
        SA().check(split(), Diffusion(timesteps=10))
    for field in ({"gamma": -1.0}, {"strength": -1.0}, {"samples": 0}):
        with pytest.raises(ConfigError):
            SA(**field)
