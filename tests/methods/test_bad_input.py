"""What cannot work is said in one line that tells what to do, before anything is trained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tests.conftest import WHOLE_CLASS
from tests.methods.test_contract import CLASSES, build, same_bytes, unlearn
from torch import nn

from expunge import api
from expunge.cli.main import main
from expunge.data import Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.experiment import check, parse
from expunge.methods import Edit, methods
from expunge.runner import execute
from expunge.searches import searches
from expunge.searches.base import Sized
from expunge.tasks import Classification
from expunge.training import loop
from expunge.training.checkpoint import save_weights
from expunge.training.networks import MLP
from expunge.training.recipe import Recipe

EXAMPLES = sorted(set(methods.names()) - set(CLASSES))
PLAIN = {
    "name": "plain",
    "data": {"kind": "blobs", "size": 80, "test_size": 40},
    "model": {"kind": "mlp", "inputs": 2, "outputs": 4, "hidden": [8]},
    "task": {"kind": "classification", "classes": 4},
    "train": {"epochs": 1, "batch_size": 32},
    "forget": {"random": {"kind": "random_set", "size": 8}},
    "methods": {"finetune": {"epochs": 1}},
    "metrics": [{"kind": "accuracy", "part": "test"}],
    "retrained": 1,
    "engine": {"device": "cpu"},
}
REGRESSION = {
    "data": {"kind": "linear", "size": 40, "test_size": 20},
    "model": {"kind": "mlp", "inputs": 8, "outputs": 1},
    "task": "regression",
}
ONE_CLASS = {"kind": "class_set", "classes": [1]}
S3T = {"shards": 1, "slices": 1, "batch_size": 8, "epochs": 1}
"""One order of one slice: the first deletion uses it up."""


def experiment(**changes):
    return parse({**PLAIN, **changes})


@pytest.fixture
def untrained(monkeypatch):
    """Any training of the recipe or the loop, on more than the handful of a trial, fails the test."""
    steps = loop.optimise

    def fail(*_, **__):
        raise AssertionError("something was trained")

    def few(model, plan, *rest):
        if max(len(part) for part in plan.parts.values()) > 64:
            fail()
        return steps(model, plan, *rest)

    monkeypatch.setattr(Recipe, "train", fail)
    for module in ("expunge.methods.base", "expunge.methods.exact.sharded", "expunge.methods.continual"):
        monkeypatch.setattr(f"{module}.optimise", few)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the plain experiment, weights, the ids of class 1 and others."""
    monkeypatch.chdir(tmp_path)
    Path("plain.yaml").write_text(yaml.safe_dump(PLAIN))
    torch.manual_seed(0)
    save_weights(MLP(2, (8,), 4), "trained.safetensors")
    train = experiment().sourced.train
    ids = train.ids[train.column("targets") == 1].tolist()
    Path("class.txt").write_text("".join(f"{i}\n" for i in ids))
    Path("few.txt").write_text("".join(f"{i}\n" for i in ids[1:]))
    return tmp_path


def command(method, ids, *fields):
    weights = ("--model", "trained.safetensors", "--output", "out.safetensors")
    return main(["unlearn", "plain.yaml", *fields, "--method", method, "--forget", ids, *weights])


def tells(error):
    text = str(error)
    return "\n" not in text and re.search(r"\b(Use|Give|Choose|Set|Ask)\b", text) is not None


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_method_without_a_set_of_classes_is_refused_before_a_run_trains(name, untrained, tmp_path):
    with pytest.raises(ConfigError, match=f"methods.{name}: .* no forget set is made of classes") as caught:
        execute(experiment(methods={name: {}}), tmp_path)
    assert tells(caught.value)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_method_takes_the_ids_of_a_whole_class_and_no_others(name, untrained):
    fields = {"concepts": 3} if name == "concept_poison" else {}
    train = experiment().sourced.train
    ids = train.ids[train.column("targets") == 1].tolist()
    check(experiment(methods={name: fields}, forget={"a": {"kind": "given", "ids": ids}}))
    with pytest.raises(ConfigError, match="no forget set is made of classes"):
        check(experiment(methods={name: fields}, forget={"a": {"kind": "given", "ids": ids[1:]}}))


def test_the_command_unlearn_takes_the_ids_of_a_whole_class_and_no_others(place, capsys):
    assert command("unsir", "few.txt") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unsir forgets whole classes" in line
    assert not Path("out.safetensors").exists()
    assert command("unsir", "class.txt", "noise_steps=1", "noise_copies=1") == 0
    assert Path("out.safetensors").exists()


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("setting", [WHOLE_CLASS], indirect=True)
def test_a_method_for_examples_forgets_a_class_as_well(name, setting):
    """It means what it means of any other examples: what runs on them runs on all of a class."""
    result = unlearn(name, setting)
    some = Split.from_ids(setting.split.train(), range(0, 48, 4))
    assert (result is None) == (unlearn(name, replace(setting, split=some)) is None)
    if result is not None:
        state, before = result.state_dict(), setting.original.state_dict()
        assert all(torch.isfinite(value).all() for value in state.values())
        same = state.keys() == before.keys() and same_bytes(result, setting.original)
        assert not same or issubclass(methods.get(name), Edit)  # an edit may find nothing above its threshold


NEED_LABELS = {
    **dict.fromkeys(CLASSES, "no classes to forget. Use"),
    **dict.fromkeys(["ugradsl", "ugradsl_plus"], "no classes to smooth over. Use"),
    **dict.fromkeys(["boundary_shrink", "boundary_expand"], "'Regression' has none. Use"),
    **dict.fromkeys(["salun", "amnesiac", "random_labels"], "no range to draw .* from. Give"),
    "fisher": "has none. Use influence",
}


@pytest.mark.parametrize("name", NEED_LABELS)
def test_methods_that_need_labels_refuse_a_task_without_them(name, untrained, tmp_path):
    with pytest.raises(Unsupported, match=f"methods.{name}: .*{NEED_LABELS[name]}") as caught:
        execute(experiment(**REGRESSION, methods={name: {}}), tmp_path)
    assert tells(caught.value)


@pytest.mark.parametrize("search", ["class_set", "moderate", "el2n"])
def test_searches_that_need_labels_refuse_a_task_without_them(search, untrained, tmp_path):
    fields = ONE_CLASS if search == "class_set" else {"kind": search, "size": 4}
    with pytest.raises(Unsupported, match=r"forget.a: .*'Regression'.*Use") as caught:
        execute(experiment(**REGRESSION, forget={"a": fields}), tmp_path)
    assert tells(caught.value)


def test_a_classifier_of_data_without_labels_is_refused_by_every_method(untrained):
    from expunge.data import ArrayData

    split = Split.from_ids(ArrayData({"inputs": torch.zeros(6, 2)}), [0, 1])
    for name in methods.names():
        with pytest.raises(DataError, match="targets"):
            api.unlearn(nn.Linear(2, 3), split, build(name), task=Classification(3))


class Stored(nn.Module):
    """A model whose first weights are kept in 8 bits."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 2, dtype=torch.int8), requires_grad=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x @ self.weight.float().T)


SPLIT = Split.from_ids((torch.randn(12, 2), torch.arange(12) % 3), range(0, 12, 3))


EDITS = [name for name in methods.names() if issubclass(methods.get(name), Edit) and name != "uce"]
"""But the one that refuses every classifier."""


@pytest.mark.parametrize("name", EDITS)
def test_edits_refuse_weights_of_integers(name, untrained):
    with pytest.raises(Unsupported, match=f"{name} writes .* 'weight' is torch.int8. Give") as caught:
        api.unlearn(Stored(), SPLIT, build(name), task=Classification(3))
    assert tells(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", methods.names())
def test_no_method_takes_the_quantised_layers_of_torch(name, untrained):
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(Unsupported, match=f"{name} needs gradients.*'0' is a Linear. Give") as caught:
        api.unlearn(model, SPLIT, build(name), task=Classification(3))
    assert tells(caught.value)


@pytest.mark.parametrize(
    ("method", "forget", "said"),
    [
        ({"sisa": {"shards": 5}}, {}, "shard 0 of 5 holds 16 examples, fewer than a batch of 32. Set"),
        ({"sisa": {"shards": 2}}, {"size": 30}, "after the deletion, fewer than a batch of 32. Set"),
        ({"s3t": {**S3T, "slices": 2}}, {}, "a layer to adapt for each of 2 slices.* Set slices to"),
        ({"s3t": S3T}, {}, r"no order of slices is left .*retraining is due\. Set retrain=auto"),
    ],
)
def test_deletions_that_shards_cannot_take_are_refused_before_a_run_trains(
    method, forget, said, untrained, tmp_path
):
    asked = {"random": {**PLAIN["forget"]["random"], **forget}}
    with pytest.raises(Unsupported, match=said) as caught:
        execute(experiment(methods=method, forget=asked), tmp_path)
    assert tells(caught.value)


def test_a_set_that_a_method_can_delete_and_one_that_is_not_known_yet_are_left_to_the_run(untrained):
    large = {"kind": "random_set", "size": 30}
    with pytest.raises(Unsupported, match="after the deletion"):
        check(experiment(methods={"sisa": {"shards": 2}}, forget={"large": large}))
    for other in ({"kind": "random_set", "size": 2}, {"kind": "loss_ranking", "size": 2}):
        check(experiment(methods={"sisa": {"shards": 2}}, forget={"large": large, "other": other}))


def test_what_is_predicted_of_a_random_set_is_what_the_run_meets(tmp_path):
    """The forget set and the shards of the check are those of the run, where only another set is due."""
    fields = {**S3T, "slices": 2, "shards": 2}
    drawn, hard = {"kind": "random_set", "size": 3}, {"kind": "loss_ranking", "size": 1}
    same = {"model": {**PLAIN["model"], "hidden": [8, 8]}, "methods": {"s3t": fields}}
    refused = []
    for seed in (1, 2):
        report = execute(experiment(**same, forget={"a": drawn, "b": hard}, seed=seed), tmp_path / str(seed))
        (row,) = (row for row in report.tables[0].rows if row.name == "s3t")
        refused.append(_refusal(experiment(**same, forget={"a": drawn}, seed=seed)))
        assert refused[-1] == (row.error and f"methods.s3t: {row.error}")
    assert refused[0] is None
    assert "retraining is due" in refused[1]


def _refusal(asked):
    try:
        check(asked)
    except Unsupported as error:
        return str(error)
    return None


def test_a_used_up_budget_is_retrained_with_auto(place, tmp_path):
    report = execute(experiment(methods={"s3t": {**S3T, "retrain": "auto"}}), tmp_path / "run")
    (row,) = (row for row in report.tables[0].rows if row.name == "s3t")
    assert row.error is None
    fields = ("shards=1", "slices=1", "batch_size=8", "epochs=1")
    assert command("s3t", "few.txt", *fields) == 2
    assert not Path("out.safetensors").exists()
    assert command("s3t", "few.txt", *fields, "retrain=auto") == 0


SIZED = [name for name in searches.names() if issubclass(searches.get(name), Sized)]


@pytest.mark.parametrize("search", SIZED)
@pytest.mark.parametrize(
    ("unit", "size", "most"), [("example", 80, 79), ("example", 1000, 79), ("class", 4, 3)]
)
def test_no_search_takes_more_than_there_is(search, unit, size, most, untrained, tmp_path):
    asked = {"a": {"kind": search, "size": size, "unit": unit}}
    said = f"forget.a: a forget set of {size} .*leaves nothing to keep.* Ask for at most {most}"
    with pytest.raises(DataError, match=said) as caught:
        execute(experiment(forget=asked), tmp_path)
    assert tells(caught.value)
