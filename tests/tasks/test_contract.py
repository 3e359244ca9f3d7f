"""What every task promises about its per-example numbers."""

import pytest
import torch

from expunge import config
from expunge.data import fixed_order
from expunge.errors import Unsupported
from expunge.tasks import tasks
from expunge.training.session import Session


@pytest.fixture
def said(setting):
    """A prepared batch of the forget set, and what the original and an untrained model say."""
    data = setting.split.forget
    (batch,) = data.batches(fixed_order(len(data), len(data)), device="cpu")
    batch = setting.task.prepare(batch, None)
    models = setting.fresh(), setting.recipe.initial(Session(seed=4)).eval()
    with torch.no_grad():
        return batch, *(setting.task.outputs(model, batch) for model in models)


def test_every_number_is_finite_and_one_for_each_example(setting, said):
    batch, first, second = said
    task, n = setting.task, len(batch["ids"])
    for values in (
        task.loss(second, batch),
        task.log_likelihood(second, batch),
        task.divergence(first, second, batch),
        task.score(second, batch),
    ):
        assert values.shape == (n,)
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()


def test_numbers_of_an_example_do_not_depend_on_its_batch(setting, said):
    batch, first, second = said
    task = setting.task
    row = {name: values[2:3] for name, values in batch.items()}
    for whole, alone in (
        (task.loss(second, batch), task.loss(second[2:3], row)),
        (task.divergence(first, second, batch), task.divergence(first[2:3], second[2:3], row)),
        (task.score(second, batch), task.score(second[2:3], row)),
    ):
        assert torch.allclose(whole[2:3], alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_is_zero_between_equals_and_positive_otherwise(setting, said, temperature):
    batch, first, second = said
    assert setting.task.divergence(first, first.clone(), batch, temperature).tolist() == [0.0] * len(first)
    assert (setting.task.divergence(first, second, batch, temperature) > 0).all()


def test_the_divergence_of_nearly_equal_outputs_is_never_negative(setting, said):
    batch, first, _ = said
    draws = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1e-5, 1e-7):
        near = first + scale * torch.randn(first.shape, generator=draws)
        assert (setting.task.divergence(first, near, batch) >= 0).all()


def test_the_score_lies_between_zero_and_one_and_is_higher_for_the_trained_model(setting, said):
    batch, first, second = said
    trained, untrained = (setting.task.score(outputs, batch) for outputs in (first, second))
    assert ((trained >= 0) & (trained <= 1)).all()
    assert ((untrained >= 0) & (untrained <= 1)).all()
    assert trained.mean() > untrained.mean()


def test_preparing_and_relabelling_leave_the_batch_as_it_was(setting, said):
    batch, *_ = said
    before = {name: values.clone() for name, values in batch.items()}
    setting.task.prepare(batch, torch.Generator().manual_seed(0))
    setting.task.relabel(batch, torch.Generator().manual_seed(0))
    assert all(torch.equal(before[name], values) for name, values in batch.items())


def test_relabelling_repeats_with_the_generator_and_says_whether_inputs_change(setting, said):
    batch, *_ = said
    first, again, other = (
        setting.task.relabel(batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    same = [name for name in batch if torch.equal(first[name], other[name])]
    assert all(torch.equal(first[name], again[name]) for name in batch)
    assert len(same) < len(batch)
    assert all(first[name].dtype == batch[name].dtype for name in batch)
    if not setting.task.relabel_changes_inputs:
        assert torch.equal(first["inputs"], batch["inputs"])


def test_the_training_data_passes_the_check(setting):
    for part, data in setting.split.parts().items():
        setting.task.check(data, part)


def test_the_configuration_survives_a_round_trip(setting):
    assert config.build(tasks, config.dump(setting.task)) == setting.task
    assert config.dump(setting.task)["kind"] == setting.name


@pytest.mark.parametrize("setting", ["regression", "causal_lm"], indirect=True)
def test_tasks_without_classes_say_so(setting):
    with pytest.raises(Unsupported, match="has no classes to forget"):
        setting.task.groups(setting.split.forget)


@pytest.mark.parametrize("setting", ["classification", "diffusion"], indirect=True)
def test_groups_are_the_classes_or_conditions(setting):
    assert torch.equal(setting.task.groups(setting.split.forget), setting.split.forget.ids % 3)
