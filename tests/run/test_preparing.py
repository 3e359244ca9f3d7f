"""What is made once for a whole run, and what is refused before it."""

import json

import pytest

from expunge.errors import ConfigError, Unsupported
from expunge.experiment import check, parse
from expunge.runner import execute

PLAIN = {
    "name": "prepared",
    "data": "digits",
    "model": {"kind": "mlp", "inputs": 64, "outputs": 10, "hidden": [8]},
    "task": {"kind": "classification", "classes": 10},
    "train": {"epochs": 1, "batch_size": 128},
    "forget": {"few": {"kind": "random_set", "size": 3}, "class_1": {"kind": "class_set", "classes": [1]}},
    "methods": {"sisa": {"shards": 2, "slices": 1}, "unsir": {"noise_copies": 1}},
    "metrics": [{"kind": "accuracy", "part": "test"}],
    "retrained": 1,
}


def test_a_method_prepares_once_for_all_forget_sets_and_a_class_method_says_why_it_did_not_run(
    tmp_path,
) -> None:
    report = execute(parse(PLAIN), tmp_path)
    assert len(list((tmp_path / "store").glob("prepare_sisa-*"))) == 1
    rows = {table.name: {row.name: row for row in table.rows} for table in report.tables}
    assert rows["few"]["sisa"].scores["accuracy.test"].reason is None
    assert "only whole classes can be forgotten" in rows["few"]["unsir"].error
    assert rows["class_1"]["unsir"].scores["accuracy.test"].reason is None
    pieces = {path.name for path in (tmp_path / "store").iterdir()}
    execute(parse(PLAIN), tmp_path)
    assert {path.name for path in (tmp_path / "store").iterdir()} == pieces


def test_methods_that_differ_in_what_does_not_matter_to_it_share_what_is_prepared(tmp_path) -> None:
    match = {"kind": "datamodel_match", "models": 2, "epochs": 1}
    methods = {"slow": {**match, "optim": {"lr": 1e-5}}, "fast": match, "more": {**match, "models": 3}}
    execute(
        parse({**PLAIN, "forget": {"few": {"kind": "random_set", "size": 3}}, "methods": methods}), tmp_path
    )
    assert len(list((tmp_path / "store").glob("prepare_datamodel_match-*"))) == 2


def test_searches_that_need_reference_models_share_them(tmp_path) -> None:
    adversarial = {"kind": "adversarial", "size": 5, "models": 4, "fraction": 0.5, "rounds": 1, "sets": 1}
    forget = {
        "one": {**adversarial, "starts": []},
        "two": {**adversarial, "starts": [], "methods": [{"kind": "finetune", "epochs": 1}]},
    }
    execute(parse({**PLAIN, "forget": forget, "methods": {"finetune": {"epochs": 1}}}), tmp_path)
    assert len(list((tmp_path / "store").glob("prepare_adversarial-*"))) == 1
    (found,) = (tmp_path / "store").glob("search_one-*")
    value = json.loads((found / "value.json").read_text())
    assert value["search"]["kind"] == "adversarial"
    assert len(value["details"]["exposure of each set tried"]) == 3
    assert len(value["fingerprint"]) == 64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"forget": {"few": {"kind": "random_set", "size": 3}}},
            ConfigError,
            "methods.unsir: .*no forget set is made",
        ),
        ({"methods": {"sisa": {"shards": 20}}}, Unsupported, "methods.sisa: .*fewer than a batch of 128"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(change, error, message) -> None:
    with pytest.raises(error, match=message):
        check(parse({**PLAIN, **change}))
