"""``bench/erasing_requests.py``: its order, its measures by hand, and a whole run of a micro experiment."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from tests.evaluation.painters import CONCEPTS, data

from expunge.errors import ConfigError
from expunge.evaluation.gallery import Pictures, Prompts

BENCH = Path(__file__).parents[2] / "bench"


def _bench() -> ModuleType:
    sys.path.insert(0, str(BENCH))  # it imports its neighbour
    try:
        spec = importlib.util.spec_from_file_location("erasing_requests", BENCH / "erasing_requests.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCH))


bench = _bench()


def test_requests_follow_each_other_and_one_concept_stays() -> None:
    found = bench.requests(data(), "object", seed=0)
    assert len(found) == 2
    assert found[1].gone == (*found[0].gone, found[1].gone[1])
    first, second = found
    assert set(first.split.retain.ids.tolist()) == set(
        second.split.forget.ids.tolist() + second.split.retain.ids.tolist()
    )
    for request in found:
        assert request.name == CONCEPTS["object"][request.gone[-1]]
        assert request.split.forget.column("object").unique().tolist() == [request.gone[-1]]
        assert not set(request.split.retain.column("object").tolist()) & set(request.gone)
    orders = {tuple(bench.requests(data(), "object", seed=seed)[-1].gone) for seed in range(12)}
    assert len(orders) > 2
    assert len(bench.requests(data(), "object", 0, 1)) == 1
    with pytest.raises(ConfigError, match="requests: must be 1..2 of 3 concepts, got 3"):
        bench.requests(data(), "object", 0, 3)
    with pytest.raises(ConfigError, match="domain: there is no 'colour'; there are style, object"):
        bench.requests(data(), "colour", 0)


def test_measures_by_hand() -> None:
    """Two images of each of six prompts; objects are erased in the order cross (1), star (0)."""
    cells = torch.tensor([(s, o) for s in range(2) for o in range(3)])
    prompts = Prompts(CONCEPTS, cells, tuple("abcdef"), torch.zeros(6, 1), None)
    rows = torch.arange(6).repeat_interleave(2)
    drawn = Pictures(torch.zeros(12, 3, 1, 1), prompts, rows, 1.0)
    right = torch.ones(12, 2, dtype=torch.bool)
    right[2:4, 1] = False  # the photo's crosses are gone
    right[8:10, 1] = False  # and the mosaic's
    right[0, 1] = False  # one star of four
    right[4, 0] = False  # the style of one moon of four
    right[2, 0] = False  # and that of one cross
    one = bench.measured(drawn, right, "object", (1,))
    assert {name: found["value"] for name, found in one.items()} == pytest.approx(
        {"forgotten": 1, "last": 1, "in_domain": 7 / 8, "cross_domain": 7 / 8, "conditioned": 3 / 4}
    )
    assert one["forgotten"]["n"] == 4
    assert one["in_domain"]["interval"][0] < 7 / 8 < one["in_domain"]["interval"][1]
    two = bench.measured(drawn, right, "object", (1, 0))
    assert {name: found["value"] for name, found in two.items()} == pytest.approx({
        "forgotten": 5 / 8, "last": 1 / 4, "earlier": 1, "in_domain": 1, "cross_domain": 3 / 4,
        "conditioned": 7 / 8,
    })  # fmt: skip


def test_the_costs_add_up_and_a_line_ends_where_the_method_does() -> None:
    rows = [{"concept": "a", "cost": 0.25, "forgotten": {"value": 1 / 3}}, {"concept": "b", "error": "no"}]
    found = bench.summary({"uce": rows})["uce"]
    assert found[0]["forgotten"]["value"] == 0.3333
    assert [row.get("cost so far") for row in found] == [0.25, None]
    assert found[1] == {"requests": 2, "concept": "b", "error": "no"}


MICRO: dict[str, Any] = {
    "name": "micro",
    "data": {
        "kind": "canvas", "styles": ["photo", "sketch", "mosaic"], "objects": ["circle", "square"],
        "per_cell": 2, "test_per_cell": 1, "size": 8, "codec": {"patch": 1, "channels": 3},
    },
    "model": {
        "kind": "text_to_image", "vocabulary": 608, "image_size": 8, "channels": [8, 8], "groups": 4,
        "heads": 2, "attention": 4, "text_width": 16, "text_layers": 1, "text_heads": 2,
        "codec": {"patch": 1, "channels": 3},
    },
    "task": {"kind": "diffusion", "prediction": "velocity", "schedule": "cosine"},
    "train": {"epochs": 1, "batch_size": 6, "optim": {"kind": "adamw", "lr": 0.001}},
    "forget": {"mosaic": {"kind": "concept_set", "domain": "style", "name": "mosaic"}},
    "methods": {"uce": {"concept": "mosaic"}, "seot": {}},
    "metrics": [
        {"kind": "unlearning_accuracy", "gallery": {"seeds": [1], "steps": 2},
         "judge": {"epochs": 1, "width": 4}},
    ],
    "engine": {"device": "cpu"},
}  # fmt: skip


def test_a_micro_run_writes_its_results_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("diffusers")
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(MICRO, sort_keys=False), encoding="utf-8")
    output = tmp_path / "results.json"
    line = [str(tmp_path / "micro.yaml"), "--work", str(tmp_path / "work"), "--output", str(output)]
    bench.main(line)
    report = json.loads(output.read_text(encoding="utf-8"))
    results = report["results"]
    assert list(results) == ["nothing", "retrained", "uce", "seot"]
    assert [row["concept"] for row in results["uce"]] == report["order"]
    assert [row["cost"] for row in results["nothing"]] == [0, 0]
    assert results["retrained"][0]["cost"] > 0
    assert "earlier" in results["uce"][1]
    assert "earlier" not in results["uce"][0]
    assert "the model is guarded by seot already" in results["seot"][1]["error"]
    assert set(report["judges"]) == {"style", "object"}
    assert output.with_suffix(".svg").stat().st_size > 1000
    monkeypatch.setattr(bench.picture_judges, "seen", lambda *_: pytest.fail("drawn again"))
    bench.main([*line, "--methods", "uce", "--references", "last"])
    again = json.loads(output.read_text(encoding="utf-8"))["results"]
    assert again["uce"] == results["uce"]
    assert [row["requests"] for row in again["retrained"]] == [2]
    with pytest.raises(SystemExit, match="'micro' has no method 'esd', only uce, seot"):
        bench.main([*line, "--methods", "esd"])
    capsys.readouterr()
