import pytest
import torch
from torch import nn

from expunge.errors import ConfigError, DataError, Diverged, Unsupported
from expunge.tasks import Diffusion
from expunge.tasks.noise_schedules import trailing
from expunge.training.models import TinyDenoiser
from expunge.training.sampling import noise, sample

diffusers = pytest.importorskip("diffusers")

KINDS = {"noise": "epsilon", "velocity": "v_prediction", "sample": "sample"}


class Known(nn.Module):
    """Predicts what the answer is a function of: ``answer(x, t, c)``."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.calls = answer, []

    def forward(self, x, timesteps, condition):
        self.calls.append((x, timesteps, condition))
        return self.answer(x, timesteps, condition)


def of_a_point(task, point):
    """The perfect denoiser of a distribution that is one point."""

    def answer(x, timesteps, condition):
        signal, spread = task.levels(timesteps, x)
        known = (x - signal * point) / spread
        return task.target({"inputs": point.expand_as(x), "noise": known, "noisy": x, "timesteps": timesteps})

    return Known(answer)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", KINDS)
def test_a_perfect_denoiser_of_a_single_point_returns_that_point(prediction, schedule):
    task = Diffusion(100, prediction=prediction, schedule=schedule)
    point = torch.tensor([[0.3, -0.8, 1.2]])
    start = noise((3,), range(4))
    found = sample(of_a_point(task, point), task, None, start=start, steps=7, guidance=1)
    assert torch.allclose(found, point.expand(4, 3), atol=1e-4)


@pytest.mark.parametrize("prediction", KINDS)
def test_each_step_is_that_of_diffusers(prediction):
    task = Diffusion(100, prediction=prediction, schedule="cosine")
    scheduler = diffusers.DDIMScheduler(
        100, beta_schedule="squaredcos_cap_v2", prediction_type=KINDS[prediction], clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(10)

    def model(x, timesteps, condition):
        return torch.tanh(x) * (1 + timesteps[:, None] / 100)

    x = start = noise((5,), [1, 2])
    for step, place in enumerate(scheduler.timesteps):
        found = sample(Known(model), task, None, start=start, steps=10, guidance=1, until=step)
        assert torch.allclose(found.latents, x, rtol=1e-5, atol=1e-5)
        assert found.timesteps.tolist() == [int(place)] * 2
        x = scheduler.step(model(x, place.expand(2), None), place, x).prev_sample
    assert torch.allclose(sample(Known(model), task, None, start=start, steps=10, guidance=1), x, rtol=1e-4)


def test_where_steps_do_not_divide_the_timesteps_the_model_is_asked_at_the_level_that_was_reached():
    """10 timesteps in 3 steps: at 9, 6 and 2. diffusers steps down by 3: from 6 to 3, but is asked at 2."""
    task = Diffusion(10, prediction="sample")
    model = of_a_point(task, torch.zeros(1, 2))
    sample(model, task, None, start=noise((2,), [0]), steps=3, guidance=1)
    assert [int(timesteps[0]) for _, timesteps, _ in model.calls] == [9, 6, 2]
    for x, timesteps, _ in model.calls:  # the point is 0: what is left is noise of the level
        level = (1 - task.signal_left[timesteps]).sqrt() * noise((2,), [0]) / (1 - task.signal_left[9]).sqrt()
        assert torch.allclose(x, level, atol=1e-6)


def test_until_gives_latents_at_the_level_that_their_timestep_says():
    """The trap of ESD's code: its latents are 39 to 59 timesteps cleaner than it tells the model."""
    task = Diffusion(1000, schedule="cosine", prediction="velocity")
    start = noise((4,), range(3))
    for until in (0, 1, 13, 19):
        found = sample(
            of_a_point(task, torch.zeros(1, 4)), task, None, start=start, steps=20, guidance=1, until=until
        )
        assert found.timesteps.tolist() == [trailing(1000, 20)[until]] * 3
        spread = (1 - task.signal_left[found.timesteps]).sqrt()[:, None]
        assert torch.allclose(found.latents, spread * start, atol=1e-4)


def test_until_nothing_is_the_noise_itself_at_the_last_timestep():
    task, start = Diffusion(100), noise((4,), [3])
    model = of_a_point(task, torch.zeros(1, 4))
    found = sample(model, task, None, start=start, steps=5, guidance=1, until=0)
    assert torch.equal(found.latents, start)
    assert found.timesteps.tolist() == [99]
    assert model.calls == []


@pytest.mark.parametrize("guidance", [0.5, 1.0, 2.5])
def test_guidance_goes_from_the_empty_condition_through_the_given_one(guidance):
    """``f(c) = c`` predicts the sample: one step gives ``∅ + g (c − ∅)`` itself."""
    task = Diffusion(10, conditions=3, prediction="sample")
    model = Known(lambda x, t, c: c[:, None].float().expand_as(x))
    found = sample(model, task, torch.tensor([0, 2]), start=noise((2,), [0, 1]), steps=1, guidance=guidance)
    expected = torch.tensor([3 + guidance * (0 - 3), 3 + guidance * (2 - 3)])
    assert torch.allclose(found, expected[:, None].expand(2, 2), atol=1e-5)
    assert len(model.calls[0][0]) == (2 if guidance == 1 else 4)


def test_an_empty_prompt_of_ones_own_is_guided_away_from():
    task = Diffusion(10, prediction="sample")
    model = Known(lambda x, t, c: c[:, :1].float().expand_as(x))
    given = {"start": noise((2,), [0, 1]), "steps": 1, "guidance": 2}
    found = sample(model, task, torch.tensor([[5, 9], [6, 9]]), empty=torch.tensor([1, 9]), **given)
    assert torch.allclose(found[:, 0], torch.tensor([9.0, 11.0]))


def test_batches_and_company_change_nothing():
    torch.manual_seed(0)
    model, task = TinyDenoiser(inputs=4, conditions=3, width=8)(), Diffusion(20, conditions=3)
    conditions, start = torch.tensor([0, 1, 2, 0, 1]), noise((4,), range(5))
    whole = sample(model, task, conditions, start=start, steps=5)
    parts = sample(model, task, conditions, start=start, steps=5, batch_size=2)
    alone = sample(model, task, conditions[3:4], start=noise((4,), [3]), steps=5)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert torch.allclose(whole[3:4], alone, atol=1e-5)
    assert not torch.allclose(whole[0], whole[3])


def test_the_model_is_left_as_it_was_and_no_global_draw_is_made():
    model, task = TinyDenoiser(inputs=4, conditions=3, width=8)().train(), Diffusion(20, conditions=3)
    state, before = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    found = sample(model, task, torch.tensor([0]), start=noise((4,), [0]), steps=3)
    assert not found.requires_grad
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_noise_is_of_its_seed_alone():
    assert torch.equal(noise((2, 3), [5, 7])[1:], noise((2, 3), [7]))
    assert noise((2, 3), [5, 7]).shape == (2, 2, 3)
    assert not torch.equal(*noise((2, 3), [5, 7]))


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"guidance": 0}, ConfigError, "guidance: must be above 0, got 0. Use 1 for none; for"),
        ({"guidance": -1.0}, ConfigError, "guidance: must be above 0"),
        ({"guidance": float("nan")}, ConfigError, "guidance: must be above 0"),
        ({"steps": 0}, ConfigError, r"steps: must be 1\.\.10"),
        ({"steps": 11}, ConfigError, r"steps: must be 1\.\.10, the task's timesteps, got 11"),
        ({"until": 5}, ConfigError, r"until: must be 0\.\.4, got 5. Leave it out for finished images"),
        ({"start": None}, ConfigError, "start: give one of generator and start"),
        ({"start": torch.zeros(3, 2)}, DataError, "start has 3 rows for 2 conditions"),
        ({"start": torch.full((2, 2), torch.nan)}, DataError, "start holds NaN or infinite values"),
        ({"generator": torch.Generator()}, ConfigError, "start: give one of generator and start"),
        ({"start": None, "generator": torch.Generator()}, ConfigError, "does not say how much noise"),
        ({"condition": torch.zeros(2, 4).long()}, ConfigError, "empty: guidance needs the empty prompt"),
        ({"condition": None}, Unsupported, "an unconditional model has nothing to guide to. Use guidance=1"),
    ],
)  # fmt: skip
def test_bad_input(fields, error, said):
    task, model = Diffusion(10, conditions=3), Known(lambda x, t, c: x)
    given = {"condition": torch.tensor([0, 1]), "start": torch.zeros(2, 2), "steps": 5, **fields}
    with pytest.raises(error, match=said):
        sample(model, task, given.pop("condition"), **given)


def test_latents_that_become_nan_name_the_timestep():
    model = Known(lambda x, t, c: torch.where(t[:, None] < 5, torch.nan, x))
    with pytest.raises(Diverged, match="the latents became NaN or infinite at timestep 4. Lower guidance"):
        sample(model, Diffusion(10), None, start=torch.zeros(1, 2), steps=10, guidance=1)


def test_going_on_from_a_step_gives_what_the_whole_way_gives():
    task = Diffusion(100, schedule="cosine")
    model = Known(lambda x, timesteps, condition: torch.tanh(x) * (1 + timesteps[:, None] / 100))
    start = noise((3,), range(4))
    whole = sample(model, task, None, start=start, steps=10, guidance=1)
    reached = sample(model, task, None, start=start, steps=10, guidance=1, until=4)
    assert reached.timesteps.tolist() == [trailing(100, 10)[4]] * 4
    calls = len(model.calls)
    rest = sample(model, task, None, start=reached.latents, steps=10, guidance=1, since=4)
    assert torch.equal(rest, whole)
    assert len(model.calls) == calls + 6
    with pytest.raises(ConfigError, match=r"must be 0\.\.9"):
        sample(model, task, None, start=start, steps=10, guidance=1, since=10)
    with pytest.raises(ConfigError, match=r"must be 4\.\.9"):
        sample(model, task, None, start=start, steps=10, guidance=1, since=4, until=3)
