"""The verbs of the README's first screen, on a tiny task."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.errors import CheckpointError, ConfigError, DataError
from expunge.experiment import read
from expunge.tasks import Classification

TASK = Classification(3)


def data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return torch.randn(count, 4, generator=draws) + 2 * nn.functional.one_hot(labels, 4), labels


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))


RECIPE = expunge.Recipe(network, TASK, expunge.Training(epochs=4, batch_size=16))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return expunge.train(RECIPE, data(60, 0), seed=0)


@pytest.fixture
def split() -> expunge.Split:
    return expunge.Split.from_ids(data(60, 0), forget=[3, 17, 25, 40], test=data(30, 1))


def states() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


def weights(model: nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


def test_the_first_screen(model: nn.Module, split: expunge.Split, tmp_path: Path) -> None:
    result = expunge.unlearn(model, split, method="salun", task=TASK, seed=0)
    report = expunge.evaluate(result, against=RECIPE)
    assert "salun" in str(report)
    assert "<html" in report.to_html(tmp_path / "report.html").read_text()
    (table,) = report.tables
    assert [row.name for row in table.rows] == ["original", "retrained 1", "retrained 2", "salun"]
    assert [row.role for row in table.rows] == ["original", "retrained", "retrained", "unlearned"]


def test_nothing_of_the_callers_is_touched(model: nn.Module, split: expunge.Split) -> None:
    model.train()
    next(model.parameters()).requires_grad_(False)
    before, bytes_before = states(), weights(model)
    result = expunge.unlearn(model, split, method="random_labels", task=TASK)
    expunge.evaluate(result, against=RECIPE, retrained=1)
    expunge.search(model, data(60, 0), TASK, method={"kind": "bilevel", "size": 5})
    expunge.train(RECIPE, data(60, 0))
    assert states() == before
    assert weights(model) == bytes_before
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    next(model.parameters()).requires_grad_(True)
    model.eval()


def test_the_same_seed_gives_the_same_bytes(model: nn.Module, split: expunge.Split) -> None:
    def unlearned(seed: int) -> list[bytes]:
        torch.manual_seed(torch.seed())  # whatever the caller does between
        return weights(expunge.unlearn(model, split, "salun", task=TASK, seed=seed).model)

    assert unlearned(0) == unlearned(0)
    assert unlearned(0) != unlearned(1)


def test_against_models_or_a_recipe(model: nn.Module, split: expunge.Split) -> None:
    result = expunge.unlearn(model, split, "finetune", task=TASK)
    one = expunge.train(RECIPE, split.retain, seed=5)
    for against, names in ((one, ["retrained 1"]), ([one, one], ["retrained 1", "retrained 2"])):
        report = expunge.evaluate(
            result, against=against, metrics=["average_gap", {"kind": "accuracy", "part": "test"}]
        )
        assert [row.name for row in report.tables[0].by_role("retrained")] == names
    with pytest.raises(ConfigError, match="against"):
        expunge.evaluate(result, against=[])
    with pytest.raises(ConfigError, match="retrained"):
        expunge.evaluate(result, against=RECIPE, retrained=0)


def test_several_results_share_a_table(model: nn.Module, split: expunge.Split) -> None:
    results = [expunge.unlearn(model, split, method, task=TASK) for method in ("npo", "npo", "ssd")]
    report = expunge.evaluate(results, against=RECIPE, retrained=1)
    assert [row.name for row in report.tables[0].by_role("unlearned")] == ["npo", "npo 2", "ssd"]
    other = expunge.unlearn(network(), split, "npo", task=TASK)
    with pytest.raises(ConfigError, match="different models or splits"):
        expunge.evaluate([*results, other], against=RECIPE)
    with pytest.raises(ConfigError, match="no result"):
        expunge.evaluate([], against=RECIPE)


def test_search_finds_ids_to_forget(model: nn.Module) -> None:
    found = expunge.search(model, data(60, 0), TASK, method={"kind": "loss_ranking", "size": 6})
    assert len(found.ids) == 6
    assert "smallest loss" in found.description


def test_retrain_needs_the_recipe(model: nn.Module, split: expunge.Split) -> None:
    result = expunge.unlearn(model, split, "retrain", task=TASK, recipe=RECIPE)
    assert weights(result.model) != weights(model)


def test_run_takes_a_suite_a_file_or_an_object(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'digits'"):
        expunge.run("digts", tmp_path)
    experiment = read("digits")
    with pytest.raises(ConfigError, match="overrides"):
        expunge.run(experiment, tmp_path, overrides=["seed=1"])


def test_mistakes(model: nn.Module, split: expunge.Split) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'salun'"):
        expunge.unlearn(model, split, "sallun", task=TASK)
    with pytest.raises(DataError, match="label 2"):
        expunge.unlearn(model, split, "salun", task=Classification(2))
    broken = network()
    next(broken.parameters()).data[0, 0] = torch.inf
    with pytest.raises(CheckpointError, match="infinite"):
        expunge.unlearn(broken, split, "salun", task=TASK)
