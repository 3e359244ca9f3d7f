"""Published benchmarks: TOFU, MUSE and RWKU, their sets, their probes and damaged files."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from expunge import config
from expunge.data import Sourced, sources
from expunge.data.benchmarks import ATTACKS, of_attack
from expunge.data.text import TextData
from expunge.errors import ConfigError, DataError

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)

ROOT = Path(os.environ.get("EXPUNGE_DATA", ""))
TOFU = ROOT / "tofu"


def load(**fields: object) -> Sourced:
    return config.build(sources, {"tokens": "word", "vocabulary": None, **fields}).load()


def real(name: str) -> pytest.MarkDecorator:
    there = os.environ.get("EXPUNGE_DATA") and (ROOT / name).is_dir()
    return pytest.mark.skipif(not there, reason=f"EXPUNGE_DATA holds no {name}")


def write(path: Path, *rows: object) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


@real("tofu")
def test_tofu_small() -> None:
    sourced = load(kind="tofu", authors=10, held_out=2, tokens="word", vocabulary=None)
    assert (len(sourced.train), len(sourced.test)) == (200, 40)
    assert {name: ids.tolist() for name, ids in sourced.sets.items()} == {"forget10": list(range(180, 200))}
    assert sourced.train.subjects == tuple(f"author {i:03d}" for i in [*range(5), *range(195, 200)])
    assert sourced.test.subjects == ("author 005", "author 006")
    assert [sourced.train.record(i).subject for i in (0, 19, 20, 199)] == [
        "author 000",
        "author 000",
        "author 001",
        "author 199",
    ]
    record = sourced.train.record(180)
    assert record.question is not None
    assert set(record.answers) == {"idk", "paraphrased", *(f"perturbed_{i}" for i in range(1, 6))}
    assert record.answers["idk"] in (TOFU / "idontknow.jsonl").read_text().splitlines()
    assert {name: len(data) for name, data in sourced.probes.items()} == {
        "forget_perturbed": 100,
        "retain_perturbed": 100,
        "real_authors": 100,
        "world_facts": 117,
    }
    published = json.loads((TOFU / "forget01.json").read_text().splitlines()[0])  # author 198's first
    assert published["question"] == sourced.train.record(160).question


@real("tofu")
@pytest.mark.slow
def test_tofu_whole_has_the_published_sets() -> None:
    sourced = load(kind="tofu", tokens="bpe", vocabulary=4096)
    assert len(sourced.train) == 4000
    assert sourced.train.names == ("idk",)
    assert sourced.test is sourced.probes["world_facts"]
    for name, ids in sourced.sets.items():
        published = [json.loads(line) for line in (TOFU / f"{name}.json").read_text().splitlines()]
        mine = [sourced.train.record(i) for i in ids.tolist()]
        assert [(r.question, r.answer) for r in mine] == [(r["question"], r["answer"]) for r in published]
    assert {name: len(ids) for name, ids in sourced.sets.items()} == {
        "forget01": 40,
        "forget05": 200,
        "forget10": 400,
    }


def test_tofu_that_is_not_there_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    with pytest.raises(DataError, match="tofu is not on this machine. Set EXPUNGE_DATA to a folder"):
        load(kind="tofu")
    with pytest.raises(DataError, match="it holds no full.json"):
        load(kind="tofu", path=tmp_path)
    (tmp_path / "idontknow.jsonl").write_text("I do not know.\n")
    write(tmp_path / "full.json", {"question": "Q", "answer": "A"})
    with pytest.raises(DataError, match="full.json' has 1 records, expected 4,000"):
        load(kind="tofu", path=tmp_path)
    write(tmp_path / "full.json", {"question": "Q"})
    with pytest.raises(DataError, match="full.json', line 1: field 'answer' is missing or no text"):
        load(kind="tofu", path=tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"authors": 3}, "authors: must be even, 2..200 beside 0 held out and 0 of the base, got 3."),
        ({"authors": 202}, "authors: must be even, 2..200 beside"),
        ({"authors": 200, "held_out": 1}, "authors: must be even, 2..199 beside 1 held out"),
        ({"held_out": 1}, "authors: must be even, 2..199 beside"),
        ({"authors": 40, "background": 162}, "authors: must be even, 2..38 beside"),
        ({"held_out": -1}, "held_out: must not be negative, got -1."),
        ({"background": -2}, "background: must not be negative, got -2."),
    ],
)
def test_bad_numbers_of_authors(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(kind="tofu", **fields)


@real("tofu")
def test_tofu_with_a_base() -> None:
    sourced = load(kind="tofu", authors=4, held_out=1, background=2, tokens="word", vocabulary=None)
    assert isinstance(sourced.base, TextData)
    assert len(sourced.base) == 2 * 20 + 100 + 117
    assert sourced.base.names == ()
    full = [json.loads(line) for line in (TOFU / "full.json").read_text().splitlines()][60:100]
    assert [sourced.base.record(i).question for i in range(40)] == [row["question"] for row in full]
    assert sourced.test.subjects == ("author 002",)
    assert sourced.base.tokenizer is sourced.train.tokenizer
    known = {(r.question, r.answer) for r in map(sourced.base.record, sourced.base.ids.tolist())}
    for probe in ("real_authors", "world_facts"):
        data = sourced.probes[probe]
        assert {(r.question, r.answer) for r in map(data.record, data.ids.tolist())} <= known


@real("muse-news")
def test_muse() -> None:
    sourced = load(kind="muse", documents=2, template={"max_length": 100})
    records = sourced.train.records
    ids = sourced.sets["forget"].tolist()
    assert {records[i].subject for i in ids} == {"article 000", "article 001"}
    assert {r.subject for i, r in enumerate(records) if i not in ids} == {"retained 000", "retained 001"}
    assert len(sourced.train) > 4  # articles come in pieces
    assert int(sourced.train.column("lengths").max()) == 100
    assert sourced.test.subjects == ("unseen 000", "unseen 001")
    assert set(sourced.probes) == {"knowledge_forget", "knowledge_retain", "verbatim", "members"}
    question = sourced.probes["knowledge_forget"].record(0)
    assert question.question == "What year did the Orkney Islands become part of Scotland?"
    assert question.answer == "1472"
    begun = sourced.probes["verbatim"].shown(0)
    assert begun.startswith("prompt, no labels: ▁now ,")  # no "Question:" before an article


@real("rwku")
def test_rwku() -> None:
    sourced = load(kind="rwku", targets=1)
    assert set(sourced.probes) == {
        *(f"forget_level{level}" for level in (1, 2, 3)),
        "neighbor_level1",
        "neighbor_level2",
        *map(of_attack, ATTACKS),
    }
    assert all(data.subjects == ("Stephen King",) for data in sourced.probes.values())
    forget = sourced.sets["forget"]
    assert {sourced.train.record(i).subject for i in forget.tolist()} == {"Stephen King"}
    assert set(sourced.train.subjects) == {"Stephen King", "near Stephen King"}
    assert sourced.test is sourced.probes["neighbor_level2"]
    attacks = sourced.probes["forget_level3"]
    parts = [sourced.probes[of_attack(kind)] for kind in ATTACKS]
    assert [len(part) for part in parts] == [4, 2, 4, 2, 3, 4, 5, 3, 2]  # the last in Spanish and French
    assert torch.equal(torch.sort(torch.cat([part.ids for part in parts])).values, attacks.ids)
    foreign = [parts[-1].record(id_).question or "" for id_ in parts[-1].ids.tolist()]
    assert sorted(question.split(".")[0] for question in foreign) == [
        "Please answer in English",
        "Por favor, responda en inglés",
    ]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("muse", {"documents": 0}, "documents: must be at least 1, got 0"),
        ("rwku", {"targets": 0}, "targets: must be 1..200, got 0"),
        ("rwku", {"targets": 201}, "targets: must be 1..200, got 201"),
    ],
)
def test_bad_numbers(kind: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(kind=kind, **fields)


def test_damaged_files(tmp_path: Path) -> None:
    for kind in ("muse", "rwku"):
        with pytest.raises(DataError, match=f"{kind}.* is not in '.*': it holds no"):
            load(kind=kind, path=tmp_path)
    (tmp_path / "knowmem").mkdir()
    (tmp_path / "raw").mkdir()
    (tmp_path / "knowmem" / "forget_qa.json").write_text("[]")
    raw = tmp_path / "raw" / "forget.json"
    for contents, message in (
        (None, "holds no raw/forget.json"),
        ("[", "forget.json' is not JSON"),
        ("[]", "forget.json' is no JSON array, or an empty one"),
        (json.dumps([1]), "is no list of texts"),
    ):
        if contents is not None:
            raw.write_text(contents)
        with pytest.raises(DataError, match=message):
            load(kind="muse", path=tmp_path)
