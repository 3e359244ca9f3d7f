import math

import pytest
import torch

from expunge.tasks.noise_schedules import signal_left, trailing

diffusers = pytest.importorskip("diffusers")

ENDS = (0.00085, 0.012)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")],
)
@pytest.mark.parametrize("timesteps", [10, 1000])
def test_every_schedule_is_that_of_diffusers(ours, theirs, timesteps):
    scheduler = diffusers.DDIMScheduler(timesteps, *ENDS, beta_schedule=theirs)
    assert torch.allclose(signal_left(ours, timesteps, *ENDS), scheduler.alphas_cumprod, rtol=1e-5, atol=0)


def test_the_cosine_schedule_by_hand():
    """``g(u) / g(0)`` at ``u = (t + 1) / T`` until the last step, whose variance is cut off at 0.999."""
    g = [math.cos((step / 4 + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(5)]
    found = signal_left("cosine", 4, 0.1, 0.2)
    assert found[:3].tolist() == pytest.approx([g[1] / g[0], g[2] / g[0], g[3] / g[0]], rel=1e-5)
    assert float(found[3] / found[2]) == pytest.approx(0.001, rel=1e-3)


def test_two_steps_of_the_linear_schedules_by_hand():
    assert signal_left("linear", 2, 0.04, 0.16).tolist() == pytest.approx([0.96, 0.96 * 0.84])
    assert signal_left("scaled_linear", 3, 0.04, 0.16)[1:].tolist() == pytest.approx(
        [0.96 * 0.91, 0.96 * 0.91 * 0.84]  # √β = 0.2, 0.3, 0.4
    )


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 20), (1000, 30), (10, 3), (10, 10), (7, 1)])
def test_trailing_timesteps_are_those_of_diffusers(timesteps, steps):
    scheduler = diffusers.DDIMScheduler(timesteps, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert trailing(timesteps, steps) == scheduler.timesteps.tolist()


def test_trailing_timesteps_begin_with_the_last_one():
    assert trailing(1000, 4) == [999, 749, 499, 249]
    assert all(len(trailing(1000, steps)) == steps for steps in range(1, 200))
