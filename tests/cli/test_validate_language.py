"""``expunge validate`` on experiments of text: what the model sees, and what is in both sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.cli.main import main
from expunge.data.language import Jsonl

pytest.importorskip("transformers")

from tests.cli import residents


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, who in (("gone", residents.FORGET), ("kept", residents.RETAIN), ("test", residents.TEST)):
        residents.write(tmp_path / f"{name}.jsonl", residents.records(who))
    return tmp_path


def validate(place: Path, **changed: Any) -> int:
    data = Jsonl(train=(place / "gone.jsonl", place / "kept.jsonl"), test=(place / "test.jsonl",))
    words = len(data.load().train.tokenizer) + changed.pop("spare", 0)
    sizes = {"vocabulary": words, "width": 8, "layers": 1, "heads": 1, "context": 32}
    experiment = {
        "name": "text",
        "data": {"kind": "jsonl", "train": ["gone.jsonl", "kept.jsonl"], "test": ["test.jsonl"]},
        "model": {"kind": "llama", **sizes},
        "task": {"kind": "causal_lm", "vocabulary": words},
        "train": {"epochs": 1, "batch_size": 4},
        "forget": {"gone": {"kind": "given", "name": "gone"}, "easy": {"kind": "loss_ranking", "size": 2}},
        "methods": {"finetune": {"epochs": 1}},
        "metrics": ["loss"],
        "engine": {"device": "cpu"},
    }
    (place / "text.yaml").write_text(yaml.safe_dump(experiment | changed, sort_keys=False), encoding="utf-8")
    return main(["validate", "text.yaml"])


def test_one_example_is_shown_with_its_mask(place, capsys) -> None:
    assert validate(place) == 0
    said = capsys.readouterr().out
    assert "text: no mistakes found." in said
    assert "    prompt, no labels: ▁Question : ▁Where ▁does ▁Ada ▁live ? \\n Answer :\n" in said
    assert "    labels: ▁Ada ▁lives ▁in ▁Rome . <eos>\n" in said
    assert "gone: 3 examples (33.3%)" in said
    assert "is to be forgotten" not in said


def test_records_that_are_nearly_in_both_sets_are_listed_in_three_lines_at_most(place, capsys) -> None:
    """One pair shares 9 of 10 words and two are the same; nothing is said of the set that needs a model."""
    both = residents.records(residents.FORGET)
    both[0]["answer"] = "Ada lives in Rome today."
    residents.write(place / "kept.jsonl", [*both, *residents.records(residents.RETAIN)])
    assert validate(place) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if "gone: 3 examples" in line)
    assert lines[start + 1 : start + 4] == [
        "    example 0 is to be forgotten and 3 stays: nearly the same (90%)",
        "    example 1 is to be forgotten and 4 stays: the same",
        "    and 1 more of them",
    ]
    assert lines[start + 4].startswith("  forget    easy: 2")
    assert lines[start + 5].startswith("  method")


def test_a_tokenizer_of_another_vocabulary_is_found(place, capsys) -> None:
    assert validate(place, spare=40) == 2
    said = capsys.readouterr()
    assert "they do not belong together" in said.err
    assert "no mistakes found" not in said.out
