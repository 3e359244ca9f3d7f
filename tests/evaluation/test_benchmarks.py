"""The benchmarks' own numbers, over data in the layout of theirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tests.evaluation.speakers import evidence

from expunge import seeding
from expunge.data.benchmarks import Muse, Rwku
from expunge.data.split import Split
from expunge.evaluation import benchmarks
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


@pytest.mark.skipif(not (DATA / "rwku").is_dir(), reason="EXPUNGE_DATA holds no rwku")
def test_every_number_of_rwku_has_a_value_on_its_published_probes() -> None:
    sourced = Rwku(path=DATA / "rwku", targets=1, vocabulary=512).load()
    quick = {
        name: m for name, m in benchmarks.rwku().items() if name not in ("forget level 3", "targets level 3")
    }
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
