"""What diffusion adds to the first form of the task: three predictions, captions, dropout, other captions."""

from types import SimpleNamespace

import pytest
import torch

from expunge import config
from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks import Diffusion, tasks

KINDS = ("noise", "velocity", "sample")
IDS = {"": 1, "empty": 0, "style": 2}


def captioned(count=6, shape=(2, 3)):
    draws = torch.Generator().manual_seed(0)
    rows = torch.arange(count)[:, None] * 10
    columns = {f"{name}.input_ids" if name else "input_ids": rows + value for name, value in IDS.items()}
    return {"ids": torch.arange(count), "inputs": torch.randn(count, *shape, generator=draws), **columns}


def of(prediction, **fields):
    return Diffusion(timesteps=50, beta_end=0.3, prediction=prediction, **fields)


def drawn(task, batch=None):
    return task.prepare(batch or captioned(), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prediction", KINDS)
def test_a_perfect_prediction_has_no_loss_and_says_what_the_example_and_its_noise_were(prediction):
    task = of(prediction)
    batch = drawn(task)
    outputs = task.target(batch).flatten(1)
    assert task.loss(outputs, batch).tolist() == [0.0] * 6
    assert torch.allclose(task.original_clean(outputs, batch), batch["inputs"], atol=1e-4)
    assert torch.allclose(task.noise_of(outputs, batch), batch["noise"], atol=1e-4)
    assert torch.allclose(task.noise_of(task.target(batch), batch), batch["noise"], atol=1e-4)


def test_the_three_predictions_say_the_same_and_their_losses_differ_by_known_factors():
    """One wrong ``x̂_0``, said in three ways: ``ℓ_noise = ᾱ / (1 − ᾱ) ℓ_sample`` and
    ``ℓ_velocity = ℓ_sample / (1 − ᾱ)``, so ``ℓ_noise = ᾱ ℓ_velocity``."""
    batch = drawn(of("noise"))
    kept = of("noise").signal_left[batch["timesteps"]]
    signal, spread = of("noise").levels(batch["timesteps"], batch["inputs"])
    clean = batch["inputs"] + torch.randn(batch["inputs"].shape, generator=torch.Generator().manual_seed(2))
    noise = (batch["noisy"] - signal * clean) / spread
    said = {"noise": noise, "sample": clean, "velocity": signal * noise - spread * clean}
    losses = {kind: of(kind).loss(outputs.flatten(1), batch) for kind, outputs in said.items()}
    assert torch.allclose(losses["noise"], losses["sample"] * kept / (1 - kept), rtol=1e-4)
    assert torch.allclose(losses["velocity"], losses["sample"] / (1 - kept), rtol=1e-4)
    assert torch.allclose(losses["noise"], losses["velocity"] * kept, rtol=1e-4)
    for kind, outputs in said.items():
        assert torch.allclose(of(kind).original_clean(outputs, batch), clean, atol=1e-4)
        assert torch.allclose(of(kind).noise_of(outputs, batch), noise, atol=1e-4)


def test_the_velocity_by_hand():
    task = Diffusion(timesteps=1, beta_start=0.36, beta_end=0.36, prediction="velocity")
    batch = {"inputs": torch.tensor([[1.0]]), "noise": torch.tensor([[2.0]]), "timesteps": torch.tensor([0])}
    batch["noisy"] = task.noised(batch["inputs"], batch["noise"], batch["timesteps"])
    assert float(batch["noisy"]) == pytest.approx(0.8 * 1 + 0.6 * 2)
    assert float(task.target(batch)) == pytest.approx(0.8 * 2 - 0.6 * 1)


def test_before_the_first_timestep_nothing_is_noise():
    signal, spread = of("noise").levels(torch.tensor([-1, 0]), torch.zeros(2, 3))
    assert (float(signal[0]), float(spread[0])) == (1.0, 0.0)
    assert float(spread[1]) == pytest.approx(0.01, rel=1e-3)  # √β_start


@pytest.mark.parametrize("prediction", KINDS)
def test_predictions_that_the_model_draws_have_its_variance_and_leave_the_noisy_example_as_it_is(prediction):
    task = of(prediction)
    batch = drawn(task, captioned(400, (2, 4)))
    outputs = task.target(batch).flatten(1) + 0.5
    found = task.sample(outputs, batch, torch.Generator().manual_seed(0))
    off = task.target(found).flatten(1) - outputs
    assert float(off.var()) == pytest.approx(8 / 2, rel=0.05)
    assert float(off.mean()) == pytest.approx(0, abs=0.1)
    assert torch.equal(found["noisy"], batch["noisy"])
    if prediction != "noise":  # noise and example still make up the noisy example
        again = task.noised(found["inputs"], found["noise"], found["timesteps"])
        assert torch.allclose(again, batch["noisy"], atol=1e-3)


def test_captions_are_the_condition_where_there_are_any():
    seen = []
    batch = drawn(of("noise"))
    of("noise").outputs(lambda x, t, c: seen.append(c) or x, batch)
    of("noise", conditions=3).outputs(lambda x, t, c: seen.append(c) or x, {**batch, "targets": batch["ids"]})
    assert torch.equal(seen[0], batch["input_ids"])
    assert torch.equal(seen[1], batch["input_ids"])


def test_dropout_puts_other_captions_in_place_of_the_stated_shares():
    task = of("noise", dropout={"empty": 0.1, "style": 0.2})
    batch = captioned(20_000, (1,))
    found = drawn(task, batch)["input_ids"] - batch["ids"][:, None] * 10  # each row its own captions
    shares = torch.bincount(found.flatten(), minlength=3) / len(found)
    assert shares.tolist() == pytest.approx([0.1, 0.7, 0.2], abs=0.01)  # 3.5 standard errors
    assert torch.equal(drawn(task, batch)["input_ids"], drawn(task, batch)["input_ids"])


def test_nothing_is_dropped_in_evaluation_and_unlearning():
    task = of("noise", dropout={"empty": 1.0})
    batch = captioned()
    assert torch.equal(drawn(task, batch)["input_ids"], batch["empty.input_ids"])
    assert torch.equal(task.prepare(batch, None)["input_ids"], batch["input_ids"])
    assert torch.equal(drawn(task.unlearning(), batch)["input_ids"], batch["input_ids"])
    assert task.unlearning() == of("noise")


def test_dropout_changes_no_other_draw():
    with_, without = drawn(of("noise", dropout={"empty": 0.5})), drawn(of("noise"))
    assert all(torch.equal(with_[name], without[name]) for name in ("noise", "timesteps", "noisy"))


def test_a_class_is_dropped_for_the_index_after_the_last():
    task = of("noise", conditions=3, dropout={"empty": 0.5})
    batch = {"ids": torch.arange(4000), "inputs": torch.zeros(4000, 1), "targets": torch.ones(4000).long()}
    shares = torch.bincount(drawn(task, batch)["targets"], minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0, 0.5, 0, 0.5], abs=0.03)


def test_instead_is_the_same_noisy_example_under_another_caption_or_class():
    batch = drawn(of("noise"))
    found = of("noise").instead(batch, "empty")
    assert torch.equal(found["input_ids"], batch["empty.input_ids"])
    assert torch.equal(found["noisy"], batch["noisy"])
    assert torch.equal(found["noise"], batch["noise"])
    classes = {
        "ids": torch.arange(2),
        "targets": torch.tensor([0, 1]),
        "anchor.targets": torch.tensor([2, 2]),
    }
    task = of("noise", conditions=3)
    assert task.instead(classes, "empty")["targets"].tolist() == [3, 3]
    assert task.instead(classes, "anchor")["targets"].tolist() == [2, 2]
    assert classes["targets"].tolist() == [0, 1]


def test_captions_that_are_not_there_are_named():
    with pytest.raises(
        Unsupported, match="no 'anchor' captions; it has: empty, style. Give them by with_capt"
    ):
        of("noise").instead(captioned(), "anchor")
    with pytest.raises(Unsupported, match="Use a method without 'idk' .there is: empty., or give a column"):
        of("noise", conditions=3).instead({"targets": torch.tensor([0])}, "idk")
    with pytest.raises(Unsupported, match="has no other answers"):
        of("noise").instead({"inputs": torch.zeros(1)}, "empty")


def test_a_relabelled_caption_is_the_empty_one():
    batch = drawn(of("noise"))
    assert torch.equal(of("noise").relabel(batch, None)["input_ids"], batch["empty.input_ids"])


def test_antithetic_timesteps_come_in_pairs():
    steps = drawn(of("noise", antithetic=True), captioned(7))["timesteps"]
    assert (steps[:3] + steps[4:]).tolist() == [49] * 3
    assert len(steps) == 7
    many = drawn(of("noise", antithetic=True), captioned(4000, (1,)))["timesteps"]
    assert torch.bincount(many, minlength=50).min() > 40  # 80 expected
    assert (int(many.min()), int(many.max())) == (0, 49)


def test_evaluation_batches_hold_at_most_a_million_numbers():
    assert Diffusion().batch_size(ArrayData({"inputs": torch.zeros(2, 3, 8, 8)})) == 512
    assert Diffusion().batch_size(ArrayData({"inputs": torch.zeros(1, 4, 64, 64)})) == 64


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prediction": "epsilon"}, "prediction: must be one of noise, velocity, sample, got 'epsilon'"),
        ({"schedule": "sigmoid"}, "schedule: must be one of linear, scaled_linear, cosine, got 'sigmoid'"),
        ({"dropout": {"empty": 0.7, "style": 0.4}}, "dropout: needs probabilities that add up to at most 1"),
        ({"dropout": {"empty": -0.1}}, "dropout: needs probabilities"),
    ],
)
def test_fields_out_of_range_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        Diffusion(**fields)


def test_data_without_the_captions_that_dropout_draws_are_refused():
    columns = {name: values for name, values in captioned().items() if name not in ("ids", "style.input_ids")}
    of("noise", dropout={"empty": 0.1}).check(ArrayData(columns), "train")
    with pytest.raises(DataError, match="train has no column 'style.input_ids', which dropout draws"):
        of("noise", dropout={"style": 0.1}).check(ArrayData(columns), "train")
    classes = ArrayData({"inputs": torch.zeros(2, 1), "targets": torch.tensor([0, 1])})
    of("noise", conditions=2, dropout={"empty": 0.1}).check(classes, "train")
    with pytest.raises(DataError, match="train has no column 'other.targets'"):
        of("noise", conditions=2, dropout={"other": 0.1}).check(classes, "train")


def test_the_configuration_survives_a_round_trip():
    task = of("velocity", schedule="cosine", dropout={"empty": 0.1}, antithetic=True)
    assert config.build(tasks, config.dump(task)) == task


def test_schedulers_of_diffusers_become_tasks():
    diffusers = pytest.importorskip("diffusers")
    stable = diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    found = Diffusion.from_scheduler(stable, dropout={"empty": 0.1})
    assert found == Diffusion(
        beta_start=0.00085, beta_end=0.012, schedule="scaled_linear", dropout={"empty": 0.1}
    )
    cosine = diffusers.DDPMScheduler(50, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    assert Diffusion.from_scheduler(cosine) == Diffusion(50, prediction="velocity", schedule="cosine")
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(Unsupported, match="FlowMatchEulerDiscreteScheduler has beta_schedule=None"):
        Diffusion.from_scheduler(flow)
    with pytest.raises(Unsupported, match="DDIMScheduler changes its betas .trained_betas or rescale"):
        Diffusion.from_scheduler(diffusers.DDIMScheduler(rescale_betas_zero_snr=True))
    given = {"prediction_type": "flow_prediction", "beta_schedule": "linear"}
    with pytest.raises(Unsupported, match="prediction_type=flow_prediction. Use a scheduler with"):
        Diffusion.from_scheduler(SimpleNamespace(config=given, alphas_cumprod=torch.ones(1)))
