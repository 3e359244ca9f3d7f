import json
import math

import pytest

from expunge.errors import RunError
from expunge.evaluation import Report, Row, Score, Table
from expunge.evaluation.table import NO_HEADROOM


def score(value: float, interval: tuple[float, float] | None = None, reason: str | None = None) -> Score:
    return Score(
        name="accuracy", part="forget", value=value, interval=interval, n=100,
        target="retrained", unit="fraction", reason=reason,
    )  # fmt: skip


def table(original: Score, retrained: list[Score], unlearned: Score) -> Table:
    rows = [Row("original", "original", {original.id: original})]
    rows += [Row(f"retrained {i}", "retrained", {s.id: s}) for i, s in enumerate(retrained)]
    rows.append(Row("salun", "unlearned", {unlearned.id: unlearned}))
    return Table("random", "", 100, 1000, tuple(rows))


ID = "accuracy.forget"


def test_noise_is_the_spread_between_retrained_models() -> None:
    found = table(score(1.0), [score(0.7), score(0.8)], score(0.9))
    anchor = found.anchors[ID]
    assert anchor.retrained == pytest.approx(0.75)
    assert anchor.noise == pytest.approx(math.sqrt(2 * 0.05**2))
    assert found.noise_units(found.rows[-1], ID) == pytest.approx(0.15 / anchor.noise)
    assert anchor.headroom == pytest.approx(0.25 / anchor.noise)
    assert found.no_headroom(ID) is None


def test_noise_is_never_below_the_sampling_error_of_one_value() -> None:
    found = table(score(0.9, (0.8, 1.0)), [score(0.9, (0.8, 1.0)), score(0.9, (0.8, 1.0))], score(0.9))
    assert found.anchors[ID].noise == pytest.approx(0.05)


def test_no_headroom_is_said_where_doing_nothing_is_within_the_noise() -> None:
    found = table(score(0.76), [score(0.7), score(0.8)], score(0.5))
    assert found.no_headroom(ID) == NO_HEADROOM
    assert found.to_json()["anchors"][0]["verdict"] == NO_HEADROOM


def test_without_any_noise_a_gap_is_infinite_and_no_gap_is_zero() -> None:
    found = table(score(1.0), [score(0.5), score(0.5)], score(0.5))
    assert found.noise_units(found.rows[0], ID) == math.inf
    assert found.noise_units(found.rows[-1], ID) == 0.0


def test_a_missing_value_gives_no_gap_and_keeps_its_reason() -> None:
    found = table(score(1.0), [score(0.5)], score(math.nan, reason="no test data"))
    assert found.gap(found.rows[-1], ID) is None
    again = Table.from_json(json.loads(json.dumps(found.to_json())))
    assert again.rows[-1].scores[ID].reason == "no test data"
    assert math.isnan(again.rows[-1].scores[ID].value)


def test_a_score_is_nan_if_and_only_if_it_has_a_reason() -> None:
    with pytest.raises(ValueError, match="if and only if"):
        score(math.nan)
    with pytest.raises(ValueError, match="if and only if"):
        score(0.5, reason="because")


def test_report_survives_json_and_refuses_other_files(tmp_path) -> None:
    report = Report("x", (table(score(1.0), [score(0.7), score(0.8)], score(0.9)),), {"seed": 0})
    path = tmp_path / "result.json"
    path.write_text(json.dumps(report.to_json()))
    assert Report.read(path).to_json() == report.to_json()
    path.write_text("{}")
    with pytest.raises(RunError, match="not the result of a run"):
        Report.read(path)
    path.write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        Report.read(path)


def test_columns_are_gathered_once() -> None:
    found = table(score(0.9), [score(0.5), score(0.6)], score(0.7))
    assert found.columns() is found.columns()
    assert list(found.columns()) == ["accuracy.forget"]
