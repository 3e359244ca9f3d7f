"""``expunge evaluate`` on folders of language models that plain transformers code wrote and trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from expunge import language
from expunge.cli.main import main
from expunge.errors import ConfigError
from expunge.evaluation.report import Report

pytest.importorskip("transformers")

from tests.cli import residents

EVALUATE = "evaluate --original model --unlearned new --forget forget.jsonl --retain retain.jsonl"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original, two models that never saw the forget records, and one that npo made forget them."""
    place = tmp_path_factory.mktemp("judged")
    residents.train(place / "model", range(9))
    for seed in (1, 2):
        residents.train(place / f"honest{seed}", residents.RETAIN, seed=seed)
    for name, who in (("forget", residents.FORGET), ("retain", residents.RETAIN), ("test", residents.TEST)):
        residents.write(place / f"{name}.jsonl", residents.records(who, wrong=True))
    _strangers(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        settings = "--method npo --output new epochs=20 batch_size=3 optim.lr=0.005 beta=0.5 retain_weight=5"
        assert (
            main(f"unlearn --model model --forget forget.jsonl --retain retain.jsonl {settings}".split()) == 0
        )
    return place


@pytest.fixture
def place(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folders)
    return folders


@pytest.fixture(scope="module")
def judged(folders: Path) -> dict[str, Any]:
    """The result that the command wrote, of all default metrics."""
    retrained = "--retrained honest1 --retrained honest2 --test test.jsonl --directory report"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folders)
        assert main(f"{EVALUATE} {retrained}".split()) == 0
    return dict(json.loads((folders / "report" / "result.json").read_text(encoding="utf-8")))


def values(result: dict[str, Any], row: str) -> dict[str, float]:
    (found,) = (one for one in result["tables"][0]["rows"] if one["name"] == row)
    assert not [score["reason"] for score in found["scores"] if score["reason"]]
    return {f"{one['name']}.{one['part']}": one["value"] for one in found["scores"]}


def test_a_checkpoint_of_plain_transformers_is_unlearned_and_judged_without_code(judged) -> None:
    """Must show 8: training was done by transformers alone, everything after it by two commands."""
    original, honest, new = (values(judged, name) for name in ("original", "retrained 1", "new"))
    assert original["answer probability.forget"] > 0.9
    assert honest["answer probability.forget"] < 0.1
    assert new["answer probability.forget"] < 0.2
    assert new["answer probability.retain"] > 0.9
    assert (original["leakage.forget"], honest["leakage.forget"]) == (1, 0)
    assert original["ROUGE.forget"] == original["ROUGE.retain"] == 1
    assert honest["ROUGE.forget"] < 0.8
    assert original["membership.forget"] == 1


def test_the_default_metrics_are_those_that_the_records_allow(judged) -> None:
    found = set(values(judged, "new"))
    every = {f"{name}.{part}" for name in ("token accuracy", "answer probability", "loss", "truth ratio")
             for part in ("forget", "retain", "test")}  # fmt: skip
    once = {"leakage", "extraction strength", "exact memorisation", "membership"}
    both = {"ROUGE.forget", "ROUGE.retain", "average gap."}
    assert found == every | both | {f"{name}.forget" for name in once}
    assert not [name for name in found if name.startswith("cost")]


def test_documents_without_test_records_are_asked_nothing(place) -> None:
    def document(places: range) -> list[dict[str, str]]:
        return [{"text": residents.answer(i)} for i in places]

    residents.write(place / "gone.jsonl", document(residents.FORGET))
    residents.write(place / "kept.jsonl", document(residents.RETAIN))
    report = language.judge("model", "new", forget=place / "gone.jsonl", retain=place / "kept.jsonl")
    names = {score.name for score in report.tables[0].columns().values()}
    assert names == {
        "token accuracy",
        "answer probability",
        "loss",
        "extraction strength",
        "exact memorisation",
    }
    assert not report.tables[0].rows[0].answers


def test_the_report_has_the_answers_before_and_after(judged, folders) -> None:
    page = (folders / "report" / "report.html").read_text(encoding="utf-8")
    assert "Answers before and after" in page
    rows = {row["name"]: row["answers"] for row in judged["tables"][0]["rows"]}
    assert rows["original"][0] == {
        "id": 0, "question": residents.asked(0), "truth": residents.answer(0), "written": residents.answer(0),
    }  # fmt: skip
    assert len(rows["new"]) == len(rows["retrained 2"]) == 3
    assert rows["retrained 1"][0]["written"] != "Ada lives in Rome."
    again = Report.from_json(judged)
    assert again.tables[0].rows[0].answers == rows["original"]


def test_a_result_of_before_has_no_answers(judged) -> None:
    old = json.loads(json.dumps(judged))
    for row in old["tables"][0]["rows"]:
        del row["answers"]
    assert not any(row.answers for row in Report.from_json(old).tables[0].rows)


def test_without_retrained_models_there_are_values_and_no_verdicts(place, capsys) -> None:
    assert main(f"{EVALUATE} --unlearned honest1 --metrics leakage,rouge --directory alone".split()) == 0
    assert "No retrained model was given, so there are values but no verdicts" in capsys.readouterr().out
    table = json.loads((place / "alone" / "result.json").read_text())["tables"][0]
    assert [row["name"] for row in table["rows"]] == ["original", "new", "honest1"]
    assert [len(row["scores"]) for row in table["rows"]] == [2, 2, 2]
    assert not any(row["verdicts"] for row in table["rows"])


def test_guarded_models_are_judged_under_their_guard(place) -> None:
    made = "unlearn --model model --forget forget.jsonl --retain retain.jsonl --method eco --output guarded"
    assert main(made.split()) == 0
    report = language.judge(
        "model", {"as it is": "model", "guarded": "guarded"},
        forget=place / "forget.jsonl", retain=place / "retain.jsonl", metrics=["leakage"],
    )  # fmt: skip
    found = {row.name: row.scores["leakage.forget"].value for row in report.tables[0].rows}
    assert found == {"original": 1, "as it is": 1, "guarded": 0}


OTHER = f"{EVALUATE} --unlearned"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{OTHER} larger", "'larger' has 43 tokens and 'model' 42. Only models of one vocabulary"),
        (f"{OTHER} shuffled", "'shuffled' and 'model' have tokenizers that differ"),
        (f"{OTHER} nowhere", "'nowhere' is not a folder"),
        (f"{EVALUATE} --retrained nowhere", "'nowhere' is not a folder"),
        (f"{EVALUATE} --test none.jsonl", "cannot read 'none.jsonl'"),
        (f"{EVALUATE} --test forget.jsonl", "3 records are both to be forgotten and unseen"),
        (
            EVALUATE.replace("retain.jsonl", "forget.jsonl"),
            "3 records are both to be forgotten and to be kept",
        ),
        (EVALUATE.replace("--retain retain.jsonl", ""), "retain: records to forget need records"),
        (f"{EVALUATE} --data digits", "data: does not go with records"),
        (f"{EVALUATE} --metrics nonsense", "nonsense"),
        (EVALUATE.replace("evaluate", "evaluate digits"), "records need no experiment. Leave 'digits' out"),
        (
            "evaluate digits --original a --unlearned b --forget ids.txt --retain r.jsonl",
            "'ids.txt' is no such file",
        ),
    ],
)
def test_mistakes_are_one_line(place, capsys, line, said) -> None:
    assert main(f"{line} --directory never".split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (place / "never" / "result.json").exists()


def _strangers(place: Path) -> None:
    """A model of one token more, and one whose tokens are numbered otherwise."""
    residents.train(place / "larger", residents.FORGET, steps=0, spare="further")
    shutil.copytree(place / "model", place / "shuffled")
    file = place / "shuffled" / "tokenizer.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    words = written["model"]["vocab"]
    words[" Rome"], words[" Oslo"] = words[" Oslo"], words[" Rome"]
    file.write_text(json.dumps(written), encoding="utf-8")


def test_no_model_to_judge_is_refused(place) -> None:
    with pytest.raises(ConfigError, match="there is no model to judge"):
        language.judge("model", [], forget=place / "forget.jsonl", retain=place / "retain.jsonl")
