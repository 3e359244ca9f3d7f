"""Published logs, read by the same code as everything else: every number that is known of them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from expunge.errors import DataError
from expunge.evaluation.tofu import (
    closeness,
    forget_quality,
    log_truth_ratio,
    model_utility,
    paired,
    probability,
    truth_ratio,
)
from expunge.evaluation.tofu_logs import FILES, Answers, read_log

LOGS = Path(os.environ.get("EXPUNGE_DATA", "")) / "tofu" / "eval_logs"
published = pytest.mark.skipif(not LOGS.is_dir(), reason="EXPUNGE_DATA holds no tofu/eval_logs")
NAMES = ("full", "retain90", "retain95", "retain99")
KEPT = ("retain", "real_authors", "world_facts")


@pytest.fixture(scope="module")
def logs() -> dict[str, dict[str, Answers]]:
    return {
        name: read_log(LOGS / f"llama2-7b_{name}.json.gz")
        for name in ("full", "retain90", "retain95", "retain99")
    }


def ratios(answers: Answers, kind: str = "geometric") -> np.ndarray:
    return log_truth_ratio(answers.paraphrased, answers.wrong, kind)


@pytest.mark.real_data
@published
def test_forget_quality(logs: dict[str, dict[str, Answers]]) -> None:
    full, retrained = logs["full"]["forget"], logs["retain90"]["forget"]
    for kind, statistic, p in (("geometric", 0.39667, 1.834e-21), ("arithmetic", 0.41, 6.03e-23)):
        found = forget_quality(ratios(full, kind), ratios(retrained, kind))
        assert found.statistic == pytest.approx(statistic, abs=5e-6)
        assert found.p == pytest.approx(p, rel=1e-3)
        assert (found.n, found.critical) == (300, pytest.approx(0.1133, abs=5e-5))


@pytest.mark.real_data
@published
def test_paired_by_author(logs: dict[str, dict[str, Answers]]) -> None:
    full, retrained = logs["full"]["forget"], logs["retain90"]["forget"]
    assert np.bincount(full.clusters).tolist() == [20] * 15
    found = paired(ratios(full), ratios(retrained), full.clusters)
    assert found.contrast.difference == pytest.approx(-0.497, abs=5e-4)
    assert found.contrast.interval == pytest.approx((-0.586, -0.408), abs=5e-4)
    assert (found.kind, found.contrast.name) == ("different", "clustered_t")
    assert found.wasserstein == pytest.approx(0.497, abs=5e-4)
    alone = paired(ratios(full), ratios(retrained)).contrast
    assert alone.interval == pytest.approx((-0.564, -0.430), abs=5e-4)
    assert alone.effect == pytest.approx(-0.497 / 0.588, abs=2e-3)


@pytest.mark.real_data
@published
@pytest.mark.parametrize(
    ("name", "geometric", "arithmetic"),
    [
        ("full", 0.6227, 0.5859),
        ("retain90", 0.6137, 0.5752),
        ("retain95", 0.6006, 0.5613),
        ("retain99", 0.6207, 0.5812),
    ],
)
def test_model_utility(
    logs: dict[str, dict[str, Answers]], name: str, geometric: float, arithmetic: float
) -> None:
    for kind, value in (("geometric", geometric), ("arithmetic", arithmetic)):
        found = model_utility({part: logs[name][part].ability(kind) for part in KEPT})
        assert found.value == pytest.approx(value, abs=5e-5)
        assert len(found.parts) == 9
    if name == "retain90":
        interval = model_utility({part: logs[name][part].ability() for part in KEPT}).interval
        assert interval == pytest.approx((0.582, 0.643), abs=0.003)  # that of the bootstrap over questions


@pytest.mark.real_data
@published
@pytest.mark.parametrize(
    ("name", "rouge", "likely", "close"),
    [("full", 0.9854, 0.9909, 0.516), ("retain90", 0.4082, 0.1476, 0.674)],
)
def test_the_forget_set(
    logs: dict[str, dict[str, Answers]], name: str, rouge: float, likely: float, close: float
) -> None:
    forget = logs[name]["forget"]
    assert forget.rougeL_recall.mean() == pytest.approx(rouge, abs=6e-5)
    assert probability(forget.answer).mean() == pytest.approx(likely, abs=6e-5)
    assert closeness(truth_ratio(forget.paraphrased, forget.wrong)).mean() == pytest.approx(close, abs=5e-4)


@pytest.mark.real_data
@published
def test_the_logged_truth_ratio_is_the_geometric_one(logs: dict[str, dict[str, Answers]]) -> None:
    raw = json.loads(gzip.decompress((LOGS / "llama2-7b_retain90.json.gz").read_bytes()))
    for name, file in FILES.items():
        answers, logged = logs["retain90"][name], np.array(list(raw[file]["truth_ratio"].values()))
        np.testing.assert_allclose(truth_ratio(answers.paraphrased, answers.wrong), logged, rtol=2e-6)
        arithmetic = truth_ratio(answers.paraphrased, answers.wrong, "arithmetic")
        assert bool((arithmetic >= logged - 1e-4).all())
        assert arithmetic.mean() > 1.02 * logged.mean()


def log(**changes: object) -> dict[str, object]:
    measures: dict[str, object] = {
        "gt_loss": {"10": 6.0, "9": 2.0},
        "num_token_gt": {"10": 3, "9": 2},
        "paraphrased_loss": {"10": 6.0, "9": 2.0},
        "num_token_paraphrased": {"10": 3, "9": 2},
        "perturb_loss": {"10": [1.0, 2.0], "9": [3.0, 4.0]},
        "num_token_perturb": {"10": [1, 2], "9": [1, 2]},
        "rouge1_recall": {"10": 1.0, "9": 0.5},
        "rougeL_recall": {"10": 1.0, "9": 0.5},
        "generated_text": {"10": ["q", "said ten", "ten"], "9": ["said nine", "nine"]},
    }
    return dict.fromkeys(FILES.values(), measures | changes)


def test_a_log_is_read_in_the_order_of_its_questions(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log()))
    found = read_log(path)
    assert list(found) == list(FILES)
    forget = found["forget"]
    assert forget.answer.mean.tolist() == [-1.0, -2.0]
    assert forget.wrong.mean.tolist() == [[-3.0, -2.0], [-1.0, -1.0]]
    assert (forget.said, forget.truth) == (("said nine", "said ten"), ("nine", "ten"))
    assert forget.clusters.tolist() == [0, 0]
    assert found["world_facts"].clusters is None
    assert probability(forget.answer).tolist() == forget.ability().probability.tolist()
    share = found["world_facts"].ability().probability  # p / (p + all wrong ones)
    assert share[0] == pytest.approx(np.exp(-1) / (np.exp(-1) + np.exp(-3) + np.exp(-2)))


def test_bad_logs(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    with pytest.raises(DataError, match=r"cannot read .*log.json' as a TOFU log"):
        read_log(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"as a TOFU log"):
        read_log(path)
    path.write_text(json.dumps(log(rougeL_recall={"10": 1.0})))
    with pytest.raises(DataError, match=r"lacks '9'"):
        read_log(path)
    path.write_text(json.dumps({"eval_log.json": {}}))
    with pytest.raises(DataError, match=r"lacks 'gt_loss'"):
        read_log(path)
    zipped = tmp_path / "log.json.gz"
    zipped.write_bytes(b"plain")
    with pytest.raises(DataError, match=r"as a TOFU log"):
        read_log(zipped)
