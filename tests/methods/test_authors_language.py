"""The published comparison with the code of others holds for the objectives as they are now."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "docs" / "results" / "authors-language.json").read_text(encoding="utf-8"))["rows"]


def _bench():
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("authors_language", ROOT / "bench" / "authors_language.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


bench = _bench()
CASES = [(case, next(row for row in FOUND if row.get("key") == case.key)) for case in bench.cases()]


@pytest.mark.parametrize(("case", "row"), CASES, ids=lambda value: getattr(value, "key", ""))
def test_our_loss_is_the_published_one_and_theirs_but_for_what_is_intended(case, row):
    ours, _ = bench.measure(case)
    assert ours == pytest.approx(row["ours"], rel=1e-5, abs=1e-6)
    close = abs(ours - row["theirs"]) <= bench.TOLERANCE * max(1.0, abs(row["theirs"]))
    assert (close and row["gradient"] <= bench.TOLERANCE) != case.intended


def test_every_intended_difference_is_named_and_followed_by_one_that_is_rounding():
    for (case, row), (after, _) in itertools.pairwise(CASES):
        if case.intended:
            assert not row["explanation"].startswith(bench.ROUNDING)
            assert not after.intended
            assert type(after.ours) is type(case.ours)
    assert not CASES[-1][0].intended
