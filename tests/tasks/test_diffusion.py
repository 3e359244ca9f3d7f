import numpy as np
import pytest
import torch
from scipy import stats

from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks import Diffusion

TASK = Diffusion(timesteps=50, conditions=3)


def _batch(ids, shape=(2, 4)):
    ids = torch.tensor(ids)
    inputs = torch.stack([torch.full(shape, 0.1 * int(i)) for i in ids])
    return {"ids": ids, "inputs": inputs, "targets": ids % 3}


def test_the_noisy_example_follows_the_schedule():
    prepared = TASK.prepare(_batch([0, 1, 2, 3]), torch.Generator().manual_seed(0))
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 50))[prepared["timesteps"].numpy()]
    kept = torch.tensor(kept).float().view(-1, 1, 1)
    expected = kept.sqrt() * prepared["inputs"] + (1 - kept).sqrt() * prepared["noise"]
    assert torch.allclose(prepared["noisy"], expected, atol=1e-6)


def test_the_published_schedule_of_a_thousand_steps_ends_in_noise():
    task = Diffusion()
    batch = task.prepare(_batch([0] * 500, (1,)), torch.Generator().manual_seed(0))
    last = batch["timesteps"].argmax()
    assert int(batch["timesteps"].max()) > 950
    assert torch.allclose(batch["noisy"][last], batch["noise"][last], atol=2e-2)


def test_noise_is_normal_and_timesteps_are_uniform():
    prepared = TASK.prepare(_batch([5] * 4000, (1,)), torch.Generator().manual_seed(0))
    counts = torch.bincount(prepared["timesteps"], minlength=50)
    assert len(counts) == 50
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert stats.kstest(prepared["noise"].flatten().numpy(), "norm").pvalue > 1e-4


def test_without_a_generator_each_id_has_its_own_fixed_draw_in_any_batch():
    together = TASK.prepare(_batch([4, 9, 2]), None)
    alone = TASK.prepare(_batch([9]), None)
    for name in ("noise", "timesteps", "noisy"):
        assert torch.equal(together[name][1:2], alone[name])
    assert not torch.equal(together["noise"][0], together["noise"][1])


def test_without_a_generator_the_callers_generator_is_not_touched():
    state = torch.get_rng_state()
    TASK.prepare(_batch([1, 2]), None)
    assert torch.equal(torch.get_rng_state(), state)


def test_with_a_generator_every_call_draws_anew():
    draws = torch.Generator().manual_seed(0)
    first, second = TASK.prepare(_batch([1, 2]), draws), TASK.prepare(_batch([1, 2]), draws)
    assert not torch.equal(first["noise"], second["noise"])


def test_the_loss_is_the_mean_squared_error_of_the_noise():
    prepared = TASK.prepare(_batch([0, 1]), None)
    outputs = TASK.outputs(lambda x, t, c: prepared["noise"] + 0.5, prepared)
    assert torch.allclose(TASK.loss(outputs, prepared), torch.full((2,), 0.25))


def test_the_model_is_called_with_noisy_example_timestep_and_condition():
    prepared = TASK.prepare(_batch([0, 1]), None)
    seen = []
    TASK.outputs(lambda *arguments: seen.extend(arguments) or arguments[0], prepared)
    assert torch.equal(seen[0], prepared["noisy"])
    assert torch.equal(seen[1], prepared["timesteps"])
    assert torch.equal(seen[2], prepared["targets"])


def test_an_unconditional_model_gets_no_condition_and_data_without_targets():
    task = Diffusion(timesteps=10)
    prepared = task.prepare({k: v for k, v in _batch([0]).items() if k != "targets"}, None)
    seen = []
    task.outputs(lambda x, t, c: seen.append(c) or x, prepared)
    assert seen == [None]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_the_mean_squared_difference_over_the_temperature(temperature):
    first, second = torch.zeros(1, 4), torch.tensor([[2.0, 0.0, 0.0, 2.0]])
    assert float(TASK.divergence(first, second, {}, temperature)) == 2.0 / temperature


def test_relabelling_replaces_the_condition_of_the_same_noisy_example():
    prepared = TASK.prepare(_batch(list(range(3000)), (1,)), None)
    drawn = TASK.relabel(prepared, torch.Generator().manual_seed(0))
    assert torch.equal(drawn["noisy"], prepared["noisy"])
    assert torch.equal(drawn["noise"], prepared["noise"])
    assert stats.chisquare(torch.bincount(drawn["targets"], minlength=3).numpy()).pvalue > 1e-4


def test_an_unconditional_model_has_nothing_to_replace():
    with pytest.raises(Unsupported, match="has no condition to replace. Use a method that does not relabel"):
        Diffusion().relabel(_batch([0]), None)


@pytest.mark.parametrize("condition", [-1, 3])
def test_a_condition_outside_the_range_is_refused(condition):
    data = ArrayData({"inputs": torch.zeros(2, 4), "targets": torch.tensor([0, condition])})
    with pytest.raises(DataError, match=str(condition)):
        TASK.check(data, "forget")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"timesteps": 0}, "timesteps: timesteps must be at least 1"),
        ({"conditions": 0}, "conditions: conditions must be at least 1"),
        ({"beta_start": 0.03}, "beta_start: needs 0 < beta_start <= beta_end < 1"),
        ({"beta_end": 1.0}, "beta_start: needs 0 < beta_start <= beta_end < 1"),
    ],
)
def test_fields_out_of_range_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        Diffusion(**fields)
