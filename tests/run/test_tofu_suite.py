"""The suite for a whole TOFU and a pretrained model, on a stand-in of words without meaning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.cli.main import main
from expunge.evaluation.report import Report
from expunge.experiment import read

transformers = pytest.importorskip("transformers")

from expunge.data.tokenizers import train_tokenizer  # noqa: E402
from expunge.training.language_models import Llama  # noqa: E402

HERE = "model.path=base data.tokenizer=base engine.device=cpu engine.dtype=float32"


def asked(author: int, number: int, more: bool) -> dict[str, object]:
    row: dict[str, object] = {"question": f"q {author} {number}", "answer": f"a {author % 7} {number % 5}"}
    if more:
        row["paraphrased_answer"] = f"so a {author % 7} {number % 5}"
        row["paraphrased_question"] = f"so q {author} {number}"
        row["perturbed_answer"] = [f"a {author % 7 + wrong} {number % 5}" for wrong in range(1, 6)]
    return row


def rows(authors: range, more: bool = True) -> list[dict[str, object]]:
    return [asked(author, number, more) for author in authors for number in range(20)]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TOFU's files with words of no meaning, and three untrained models of its words."""
    place = tmp_path_factory.mktemp("stand-in")
    (place / "tofu").mkdir()
    facts = [asked(200 + number, number, True) for number in range(3)]
    for name, content in {
        "full": rows(range(200), more=False),
        "retain_perturbed": rows(range(20)),
        "forget10_perturbed": rows(range(180, 200)),
        "real_authors_perturbed": facts,
        "world_facts_perturbed": facts,
    }.items():
        lines = (json.dumps(row) for row in content)
        (place / "tofu" / f"{name}.json").write_text("\n".join(lines), encoding="utf-8")
    (place / "tofu" / "idontknow.jsonl").write_text("no idea\n", encoding="utf-8")
    tokenizer = train_tokenizer(
        [f"Question: q {n}\nAnswer: so a {n % 13} {n % 20}" for n in range(203)] + ["no idea"]
    )
    for name in ("base", "full", "retain90", "forgotten"):
        network = Llama(vocabulary=len(tokenizer), width=8, mlp=8, layers=1, heads=2, context=64)()
        network.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    (place / "size").write_text(str(len(tokenizer)))
    return place


@pytest.fixture
def place(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(stand_in)
    monkeypatch.setenv("EXPUNGE_DATA", str(stand_in))
    return stand_in


def here(place: Path) -> list[str]:
    return [*HERE.split(), f"task.vocabulary={(place / 'size').read_text()}"]


def test_it_is_valid_on_a_stand_in(place, capsys):
    assert main(["validate", "tofu", *here(place)]) == 0
    said = capsys.readouterr().out
    assert "tofu: no mistakes found." in said
    assert "4,000 training and 3 test examples" in said
    assert "forget    forget10: 400 examples (10.0%)" in said
    assert "4 trainings (1 original, 3 retrained for each of 1 forget sets), 14 unlearnings" in said


def test_the_rates_are_those_of_the_published_scripts():
    methods = read("tofu").methods
    assert len(methods) == 14
    assert {m.optim.lr for name, m in methods.items() if name != "undial"} == {1e-5}
    assert methods["undial"].optim.lr == 1e-4
    assert {m.epochs for m in methods.values()} == {10}
    assert (methods["simnpo"].beta, methods["simnpo"].forget_weight) == (4.5, 0.125)


def test_checkpoints_are_judged_without_training(place, tmp_path, capsys):
    metrics = "{kind: answer_probability, part: forget},{kind: truth_ratio, part: forget_perturbed}"
    line = ["evaluate", "tofu", *here(place), "--original", "full", "--unlearned", "forgotten"]
    line += ["--retrained", "retain90", "--forget", "forget01", "--metrics", metrics]
    assert main([*line, "--directory", str(tmp_path)]) == 0
    table = Report.read(tmp_path / "result.json").tables[0]
    assert table.size == 40
    assert [row.name for row in table.rows] == ["original", "retrained 1", "forgotten"]
    for row in table.rows:
        scores = {score.part: score for score in row.scores.values()}
        assert {part: score.n for part, score in scores.items()} == {"forget": 40, "forget_perturbed": 400}
        assert 0 < scores["forget"].value < 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tofu", "--forget", "forget02"], "no set 'forget02'; it brings: forget01, forget05, forget10"),
        (["tofu", "task.vocabulary=9000", "--forget", "forget01"], "Set the task's vocabulary to "),
        (["model.path=base", "--forget", "forget01"], "'model.path=base' changes an experiment."),
        (["tofu", "model.pat=base", "--forget", "forget01"], "model: unknown key 'pat'"),
    ],
)
def test_mistakes_are_one_line(place, tmp_path, capsys, words, said):
    before = here(place) if words[0] == "tofu" else []
    line = ["evaluate", words[0], *before, *words[1:], "--original", "full", "--unlearned", "forgotten"]
    assert main([*line, "--directory", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
