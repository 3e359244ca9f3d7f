"""An experiment file says what will run, and its mistakes are found before anything does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge import config
from expunge.errors import ConfigError, DataError, ExpungeError, Unsupported
from expunge.experiment import Experiment, check, parse, read, suites

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "blobs", "size": 40, "test_size": 20},
    "model": {"kind": "mlp", "inputs": 2, "outputs": 4, "hidden": [8]},
    "task": {"kind": "classification", "classes": 4},
    "forget": {"random_set": None},
    "methods": ["finetune"],
    "engine": {"device": "cpu"},
}


def tiny(*settings: str) -> Experiment:
    return parse(config.override({**TINY, "methods": {"finetune": None}}, settings))


def test_names_stand_for_kinds() -> None:
    short = parse({**TINY, "methods": ["finetune", "salun"], "forget": {"random_set": {"size": 4}}})
    long = parse(
        {
            **TINY,
            "methods": {"finetune": {"kind": "finetune"}, "salun": {}},
            "forget": {"random_set": {"kind": "random_set", "size": 4}},
        }
    )
    assert short == long


@pytest.mark.parametrize("name", sorted(suites()))
def test_suites_parse_and_come_back_from_yaml(name: str, tmp_path: Path) -> None:
    experiment = read(name)
    config.write_yaml(experiment, tmp_path / "again.yaml")
    assert read(tmp_path / "again.yaml") == experiment


def test_overrides_reach_into_a_list_of_names(tmp_path: Path) -> None:
    config.write_yaml(TINY, tmp_path / "tiny.yaml")
    experiment = read(tmp_path / "tiny.yaml", ["methods.finetune.epochs=9", "methods.ssd={}"])
    assert list(experiment.methods) == ["finetune", "ssd"]
    assert config.dump(experiment.methods["finetune"])["epochs"] == 9


def test_overrides(tmp_path: Path) -> None:
    config.write_yaml(TINY, tmp_path / "tiny.yaml")
    experiment = read(tmp_path / "tiny.yaml", ["train.epochs=3", "forget.random_set.size=0.25", "seed=7"])
    assert (experiment.train.epochs, experiment.seed) == (3, 7)
    assert config.dump(experiment.forget["random_set"])["size"] == 0.25


def test_a_sound_experiment_passes() -> None:
    check(tiny())


def test_check_does_not_touch_the_callers_generators() -> None:
    import random

    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    check(tiny("methods=[salun, ssd, random_labels]"))
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("setting", "kind", "said"),
    [
        ("model.inputs=3", ExpungeError, "3"),
        ("model.outputs=5", DataError, r"\(4, 5\)"),
        ("data.features=7", ExpungeError, "7"),
        ("task.classes=3", DataError, "label 3"),
        ("forget.random_set.size=400", DataError, "forget.random_set: .*400"),
        ("methods.finetune={scope: {kind: last_layers, count: 9}}", Unsupported, "methods.finetune: .*9"),
        ("methods.ssd={scope: lora}", Unsupported, "methods.ssd: .*LoRA"),
        ("model={kind: load, function: nowhere:build}", ConfigError, "model.function"),
    ],
)
def test_check_finds_what_parsing_cannot(setting: str, kind: type[Exception], said: str) -> None:
    experiment = tiny(setting)
    with pytest.raises(kind, match=said):
        check(experiment)


@pytest.mark.parametrize("name", ["", "a/b", "a\\b"])
def test_a_name_names_a_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        parse({**TINY, "name": name})


def test_the_first_mistake_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^methods\.a\.optim\.lr: .*-1"):
        parse({**TINY, "methods": {"a": {"kind": "finetune", "optim": {"kind": "sgd", "lr": -1}}}})
