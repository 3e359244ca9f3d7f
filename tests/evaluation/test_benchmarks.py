"""The benchmarks' own numbers, over data in the layout of theirs."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from tests.evaluation.speakers import Speaker, evidence

from expunge import seeding
from expunge.data.benchmarks import ATTACKS, Muse, Rwku
from expunge.data.split import Split
from expunge.errors import DataError
from expunge.evaluation import benchmarks, statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import registered
from expunge.training.language_models import Llama

DATA = Path(os.environ.get("EXPUNGE_DATA", ""))


def test_every_number_is_one_of_a_registered_metric_and_none_is_there_twice() -> None:
    for name, metrics in benchmarks.BENCHMARKS.items():
        assert all(registered(metric) for metric in metrics.values()), name
        assert len(set(metrics.values())) == len(metrics)
    assert list(benchmarks.muse()) == ["verbatim memory", "knowledge memory", "privacy leak", "utility"]
    six = [name for name in benchmarks.rwku() if "level" in name and "targets" not in name]
    assert len(six) == 5


def measured(sourced, metrics) -> dict[str, object]:
    split = Split.from_ids(sourced.train, sourced.sets["forget"], test=sourced.test, probes=sourced.probes)
    size = len(sourced.train.tokenizer)
    sizes = {"vocabulary": size, "width": 8, "layers": 1, "heads": 1, "mlp": 8, "context": 4096}
    with seeding.seeded(0):
        found = evidence(split, size, Llama(**sizes).network(), Llama(**sizes).network())
    return {name: metric(found).reason for name, metric in metrics.items()}


def rwku_folder(folder: Path, attacks: list[tuple[int, str, str, str]]) -> Path:
    """Files in RWKU's layout about two targets; an attack is target, type, question and answer."""
    people = {1: "Ada", 2: "Bo"}
    rows = [
        {"target_id": i, "subject": people[i], "type": kind, "query": query, "answer": answer}
        for i, kind, query, answer in attacks
    ]
    plain = [{"target_id": i, "subject": people[i], "query": "Where?", "answer": "here"} for i in people]
    passages = [
        {"target_id": i, "subject": people[i], "text": "there is a green one, no or nothing"} for i in people
    ]
    files = dict.fromkeys(("forget_level1", "forget_level2", "neighbor_level1", "neighbor_level2"), plain)
    files |= {"forget_mia": passages, "retain_mia": passages, "forget_level3": rows}
    for name, objects in files.items():
        text = "".join(f"{json.dumps(row)}\n" for row in objects)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


ASKED = [
    (1, "prefix injection", "first", "red apple"),
    (1, "cross lingual (Spanish)", "second", "green pear"),
    (1, "cross-lingual (French)", "third", "green pear"),
    (2, "cross lingual", "fourth", "green pear"),
    (2, "prefix injection", "fifth", "red apple"),
    (2, "role play", "sixth", "blue plum"),
]
SAID = {"first": "red apple", "second": "a green one", "third": "pear", "fourth": "green pear", "sixth": "no"}
"""Recalls of 1, ½, ½ and 1; 0 for the fifth, answered by nothing, and for the sixth."""


def attacked(folder: Path) -> tuple[Evidence, list[str]]:
    """Evidence about a model that says ``SAID``, and the list of the prompts it was given, as it grows."""
    asked: list[str] = []

    def reply(prompt: str) -> str:
        asked.append(prompt)
        return next((words for question, words in SAID.items() if question in prompt), "nothing")

    sourced = Rwku(path=rwku_folder(folder, ASKED), targets=2, tokens="word", vocabulary=None).load()
    split = Split.from_ids(sourced.train, sourced.sets["forget"], probes=sourced.probes)
    tokenizer = sourced.train.tokenizer
    return evidence(split, len(tokenizer), Speaker(reply, tokenizer)), asked


def test_attacks_by_type_and_all_together_by_hand(tmp_path: Path) -> None:
    found, asked = attacked(tmp_path)
    metrics = benchmarks.rwku()
    every = metrics["forget level 3"](found)
    assert every.per_example.tolist() == [1.0, 0.5, 0.5, 1.0, 0.0, 0.0]
    assert (every.value, every.n) == (0.5, 6)
    before = len(asked)
    kinds = {kind: metrics[f"attack {kind}"](found) for kind in ATTACKS}
    assert len(asked) == before  # the answers to all of them are those to each type
    values = {kind: (score.value, score.n) for kind, score in kinds.items() if score.reason is None}
    assert values == {"prefix injection": (0.5, 2), "role play": (0.0, 1), "cross lingual": (2 / 3, 3)}
    assert sum(value * n for value, n in values.values()) / 6 == pytest.approx(every.value)
    assert "there is no 'forget_level3_reverse_query' data" in (kinds["reverse query"].reason or "")
    lingual = kinds["cross lingual"]
    assert lingual.interval == pytest.approx(statistics.interval(np.array([0.5, 0.5, 1]), [0, 0, 1]))
    assert lingual.interval != pytest.approx(statistics.interval(np.array([0.5, 0.5, 1])))


def test_a_type_can_be_asked_first_and_all_after_it(tmp_path: Path) -> None:
    found, asked = attacked(tmp_path)
    metrics = benchmarks.rwku()
    assert metrics["attack cross lingual"](found).value == pytest.approx(2 / 3)
    before = len(asked)
    assert metrics["forget level 3"](found).value == 0.5
    assert len(asked) > before  # a part of the answers is not all of them


def test_a_type_that_nobody_knows_is_a_damaged_file(tmp_path: Path) -> None:
    folder = rwku_folder(tmp_path, [*ASKED, (1, "hypnosis", "seventh", "x")])
    with pytest.raises(DataError, match="question of the type 'hypnosis', which is none of prefix injection"):
        Rwku(path=folder, targets=2, tokens="word", vocabulary=None).load()


@pytest.mark.skipif(not (DATA / "rwku").is_dir(), reason="EXPUNGE_DATA holds no rwku")
def test_every_number_of_rwku_has_a_value_on_its_published_probes() -> None:
    sourced = Rwku(path=DATA / "rwku", targets=1, vocabulary=512).load()
    quick = {name: m for name, m in benchmarks.rwku().items() if name != "targets level 3"}
    assert measured(sourced, quick) == dict.fromkeys(quick)


@pytest.mark.skipif(not (DATA / "muse-news").is_dir(), reason="EXPUNGE_DATA holds no muse-news")
def test_every_number_of_muse_has_a_value_on_its_published_files() -> None:
    sourced = Muse(path=DATA / "muse-news", documents=4, vocabulary=2048).load()
    from dataclasses import replace

    metrics = benchmarks.muse()
    short = {"verbatim memory": 4, "knowledge memory": 4, "utility": 4}
    quick = {
        name: replace(m, decoding=replace(m.decoding, max_tokens=short[name])) if name in short else m  # type: ignore[attr-defined, type-var]
        for name, m in metrics.items()
    }
    assert measured(sourced, quick) == dict.fromkeys(quick)
