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
    retrained = [f"retrained {k}" for k in (1, 2, 3)]
    assert [row.name for row in table.rows] == ["original", *retrained, "salun"]
    assert [row.role for row in table.rows] == ["original", *["retrained"] * 3, "unlearned"]


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


def test_controls_margins_and_the_floor_reach_the_table(model: nn.Module, split: expunge.Split) -> None:
    result = expunge.unlearn(model, split, "finetune", task=TASK)
    report = expunge.evaluate(
        result,
        against=RECIPE,
        metrics=[{"kind": "accuracy", "part": "forget"}, {"kind": "accuracy", "part": "test"}],
        controls=("collapsed", "constant", "never_trained"),
        margins={"accuracy": 0.9, "accuracy.forget": 0.4},
    )
    (table,) = report.tables
    assert [row.name for row in table.by_role("control")] == ["collapsed", "constant", "never_trained"]
    assert table.margin("accuracy.forget") == 0.4
    assert table.margin("accuracy.test") == 0.9
    constant = next(row for row in table.rows if row.name == "constant")
    assert (
        table.floors["accuracy"]
        == pytest.approx(constant.scores["accuracy.test"].value)
        == pytest.approx(1 / 3)
    )
    assert expunge.evaluation.Table.from_json(table.to_json()).to_json() == table.to_json()
    with pytest.raises(ConfigError, match="Did you mean 'collapsed'"):
        expunge.evaluate(result, against=RECIPE, controls=("colapsed",))


def test_a_cache_trains_each_retrained_model_once(
    model: nn.Module, split: expunge.Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train = expunge.Recipe.train

    def counted(self: expunge.Recipe, data: object, session: object, what: str = "train") -> nn.Module:
        trained.append(what)
        return train(self, data, session, what)

    monkeypatch.setattr(expunge.Recipe, "train", counted)
    few = {"metrics": [{"kind": "loss", "part": "forget"}], "cache": tmp_path}
    result = expunge.unlearn(model, split, "finetune", task=TASK)
    first = expunge.evaluate(result, against=RECIPE, **few)
    other = expunge.unlearn(model, split, "npo", task=TASK)
    second = expunge.evaluate(other, against=RECIPE, **few)
    assert trained == ["retrained 1", "retrained 2", "retrained 3"]
    values = [r.tables[0].anchors["loss.forget"].values for r in (first, second)]
    assert values[0] == values[1]
    longer = expunge.Recipe(network, TASK, expunge.Training(epochs=5, batch_size=16))
    expunge.evaluate(other, against=longer, **few)
    assert len(trained) == 6


def test_repeats_are_the_siblings_of_the_first_run(model: nn.Module, split: expunge.Split) -> None:
    once = expunge.unlearn(model, split, "salun", task=TASK, seed=3)
    thrice = expunge.unlearn(model, split, "salun", task=TASK, seed=3, repeats=3)
    assert weights(once.model) == weights(thrice.model)
    assert len({tuple(weights(m)) for m in (thrice.model, *thrice.siblings)}) == 3
    with pytest.raises(ConfigError, match="repeats"):
        expunge.unlearn(model, split, "salun", task=TASK, repeats=0)


def test_nan_in_one_model_leaves_the_others_whole(model: nn.Module, split: expunge.Split) -> None:
    result = expunge.unlearn(model, split, "finetune", task=TASK)
    with torch.no_grad():
        next(result.model.parameters())[0, 0] = torch.nan
    (table,) = expunge.evaluate(result, against=RECIPE).tables
    spoilt = table.by_role("unlearned")[0].scores
    assert "NaN or infinite for 4 of 4 forget examples" in spoilt["accuracy.forget"].reason
    assert all(score.reason for id_, score in spoilt.items() if not id_.startswith("cost"))
    assert not table.rows[0].scores["accuracy.forget"].reason
