"""Verdicts, ranking, breakdowns, curves, guide and card of a report, on made-up numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report import synthetic

from expunge.evaluation.metric import metrics
from expunge.evaluation.report import Report
from expunge.evaluation.score import Score
from expunge.evaluation.table import Row, Table
from expunge.evaluation.verdict import Verdict
from expunge.report import breakdown, card, charts, curves, guide, html, layout, standing, summary, verdicts

FEW = {name: synthetic.METHODS[name] for name in ("salun", "npo")}
OLD = Path(__file__).parents[2] / "docs" / "results" / "fashion-mnist.json"


@pytest.fixture(scope="module")
def table() -> Table:
    return synthetic.table(pictures=4)


@pytest.fixture(scope="module")
def page(table: Table) -> str:
    return html.render(Report("r", (table,)))


def verdict(difference: float, kind: str = "different", needs: str = "") -> Verdict:
    p = {"p_different": 0.004, "p_holm": 0.02, "p_equivalent": 0.9}
    return Verdict(kind=kind, difference=difference, interval=(-0.1, 0.2), margin=0.03, needs=needs, **p)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- verdicts


def test_a_difference_says_its_side() -> None:
    assert verdicts.word(verdict(0.1)) == "different (above)"
    assert verdicts.word(verdict(-0.1)) == "different (below)"
    assert verdicts.word(verdict(-0.1, "equivalent")) == "equivalent"


def test_full_words_say_what_a_verdict_rests_on(table: Table) -> None:
    column = layout.columns(table)["accuracy.forget"]
    text = verdicts.full(verdict(0.012, "inconclusive", "n ≥ 1,240"), column)
    assert text == (
        "inconclusive (needs n ≥ 1,240): +1.2 points from retraining [−10.0, +20.0], margin ±3.0; "
        "p of a difference 0.004, after Holm 0.020; p of equivalence 0.90"
    )


def test_tally_counts_every_verdict_once(table: Table) -> None:
    row = next(row for row in table.rows if row.name == "salun")
    found = verdicts.tally(table, row)
    assert found is not None
    kinds = [item.kind for item in table.verdicts(row).values()]
    assert (found.equivalent, found.different) == (kinds.count("equivalent"), kinds.count("different"))
    assert found.total == len(kinds) == 15
    assert verdicts.Tally(7, 1, 1, 0).words == "equivalent on 7 of 9 metrics, different on 1, undecided on 1"
    assert "(2 of them without headroom)" in verdicts.Tally(7, 1, 1, 2).words


def test_page_has_every_verdict_in_words(table: Table, page: str) -> None:
    for row in table.rows:
        for item in table.verdicts(row).values():
            assert f"<em>{verdicts.word(item)}</em>" in page
            assert not item.needs or f"needs {item.needs}" in page
    assert "p of equivalence" in page
    assert "retrained ± noise" in page
    assert "perfect unlearner</th>" in page
    assert "within noise" not in page


def test_footings_hold_what_a_verdict_needs(table: Table) -> None:
    column = layout.columns(table)["klom.forget"]
    found = {line.name: line.texts[0] for line in layout.footings(table, [column])}
    assert found["retrained ± noise"] == "0.300 ± 0.010"
    assert found["perfect unlearner"] == "0.310"
    assert found["margin"] == f"± {column.text(table.margin('klom.forget'))}"
    plain = layout.columns(table)["accuracy.forget"]
    assert "perfect unlearner" not in [line.name for line in layout.footings(table, [plain])]


def test_few_retrained_models_are_a_caveat() -> None:
    for count, said in ((1, "every verdict is inconclusive"), (2, "most verdicts are inconclusive")):
        report = Report("x", (synthetic.table(retrained=count, methods=FEW),))
        assert said in " ".join(summary.overview(report))
        assert "At least 3" in " ".join(summary.overview(report))
    three = Report("x", (synthetic.table(methods=FEW),))
    assert "inconclusive" not in " ".join(summary.overview(three))


# ---------------------------------------------------------------------------------------- ranking


def test_a_broken_model_is_never_nearest(table: Table) -> None:
    near = replace(synthetic.scores_of(table, "salun")["average gap.svc"], value=0.0, interval=(0.0, 0.0))
    won = synthetic.changed(table, "grad_ascent", gap=near)
    found = summary.finding(won)
    assert found.nearest == ("salun",)
    assert "grad_ascent is not ranked: it keeps 68%" in " ".join(found.sentences)
    controlled = synthetic.changed(table, "collapsed", gap=near)
    assert summary.finding(controlled).nearest == ("salun",)


def test_a_control_is_never_ranked_whatever_it_scores(table: Table) -> None:
    for name in ("salun", "original"):
        able = synthetic.changed(table, "collapsed", **dict(enumerate_scores(table, name)))
        assert not any(p.rank for p in standing.standing(able).places if p.row.role == "control")
        assert "collapsed" not in summary.finding(able).nearest


def enumerate_scores(table: Table, name: str) -> list[tuple[str, Score]]:
    return [(f"score{i}", score) for i, score in enumerate(synthetic.scores_of(table, name).values())]


def test_only_broken_models_are_not_ranked() -> None:
    found = summary.finding(synthetic.table(methods={"grad_ascent": synthetic.METHODS["grad_ascent"]}))
    assert (found.kind, found.nearest) == ("not ranked", ())


def test_ties_share_their_rank(page: str, table: Table) -> None:
    found = standing.standing(table)
    ranks = [found.rank(place) for place in found.places]
    assert ranks[:4] == ["1", "2=", "2=", "4"]
    assert ranks[-4:] == ["", "", "", ""]
    assert [p.row.name for p in found.excluded] == ["grad_ascent", *synthetic.CONTROLS]
    assert page.index('<td class="rank">2=</td>') > page.index('<td class="rank">1</td>')
    assert "Not ranked: it keeps 68% of the test accuracy" in page


def test_controls_stand_last_and_grey(table: Table, page: str) -> None:
    assert [row.role for row in layout.rows(table)][-3:] == ["control"] * 3
    assert '<tr class="control first">' in page
    assert layout.rows(table)[0].role == "original"


# -------------------------------------------------------------------------------------- breakdown


def test_the_worst_class_of_each_method_is_marked() -> None:
    def classes(values: tuple[float, ...]) -> list[dict[str, object]]:
        return [
            {"part": "test", "class": i, "value": v, "low": 0, "high": 1, "n": 9}
            for i, v in enumerate(values)
        ]

    rows = (
        Row("r1", "retrained", classes=classes((0.5, 0.9, 0.7))),
        Row("r2", "retrained", classes=classes((0.7, 0.9, 0.7))),
        Row("m", "unlearned", classes=classes((0.6, 0.5, 0.8))),
        Row("c", "control", classes=classes((0.0, 0.0, 0.0))),
    )
    (found,) = breakdown.classes(Table("t", "", 9, 90, rows, names=["cat", "dog"]))
    assert found.names == ("m",)
    assert [line.name for line in found.lines] == ["cat", "dog", "class 2"]
    assert [line.retrained for line in found.lines] == ["60.0", "90.0", "70.0"]
    values = [line.values[0] for line in found.lines]
    assert [v.difference for v in values if v] == ["0.0", "−40.0", "+10.0"]
    assert [v.worst for v in values if v] == [False, True, False]


def test_of_many_classes_the_furthest_are_listed() -> None:
    def row(name: str, role: str, gap: float) -> Row:
        found = [
            {"part": "forget", "class": i, "value": 0.5 + gap * i, "low": 0, "high": 1, "n": 9}
            for i in range(100)
        ]
        return Row(name, role, classes=found)  # type: ignore[arg-type]

    (found,) = breakdown.classes(
        Table("t", "", 9, 90, (row("r", "retrained", 0), row("m", "unlearned", 0.001)))
    )
    assert (len(found.lines), found.hidden) == (20, 80)
    assert found.lines[0].name == "class 80"
    assert sum(bool(line.values[0] and line.values[0].worst) for line in found.lines) == 10


def test_worst_examples_show_their_pictures(table: Table, page: str) -> None:
    found = {item.name: item for item in breakdown.examples(table)}
    assert set(found) == {"original", *synthetic.METHODS}
    first = found["salun"].examples[0]
    assert first.picture == table.pictures[0]["png"]
    assert str(first.id) == table.pictures[0]["id"]
    assert (len(found["salun"].examples), found["salun"].hidden) == (12, 18)
    assert page.count(first.picture) > len(synthetic.METHODS)
    assert "By example: the forget examples furthest from retraining" in page
    assert "By class: test examples" in page


# ----------------------------------------------------------------------------------------- curves


def test_roc_keeps_what_logarithmic_axes_can_show() -> None:
    points = [(0.0, 0.0), (0.0, 0.3), (0.01, 0.4), (1.0, 1.0)]
    assert curves._above(points, 1e-3) == [(1e-3, 0.3), (0.01, 0.4), (1.0, 1.0)]
    assert curves._above([(0.0, 0.0), (0.5, 0.0), (1.0, 1.0)], 0.1) == [(0.1, 0.1), (0.5, 0.1), (1.0, 1.0)]


def test_every_kind_of_curve_is_drawn(table: Table) -> None:
    given = charts.marks(Report("r", (table,)))
    for draw, words in (
        (curves.roc, ("false positives", "true positives", "lira-auc")),
        (curves.relearning, ("steps", "forget accuracy")),
        (curves.depth, ("block1", "block4", "forget cka")),
    ):
        svg = draw(table, given, "x")
        assert svg is not None
        assert all(word in svg for word in (*words, "salun", "retrained", "original"))
        assert "collapsed" not in svg
        assert "ssd" not in svg
    bare = synthetic.table(methods=FEW)
    rows = [replace(r, scores={k: replace(s, details={}) for k, s in r.scores.items()}) for r in bare.rows]
    assert curves.roc(replace(bare, rows=tuple(rows)), given, "x") is None


def test_the_retrained_curve_stands_in_for_their_own() -> None:
    details = {"curve": [[0, 1.0], [1, 0.5]], "retrained_curve": [[0, 1.0], [1, 0.9]], "x_label": "steps"}
    score = Score(name="relearn", value=1.0, n=1, target="retrained", unit="steps", details=details)
    (panel,) = curves._panels(Table("t", "", 9, 90, (Row("m", "unlearned", {score.id: score}),)), "curve")
    assert [(curve.row.name if curve.row else None, curve.points) for curve in panel.curves] == [
        ("m", [(0.0, 1.0), (1.0, 0.5)]),
        (None, [(0.0, 1.0), (1.0, 0.9)]),
    ]


def test_notes_are_said_once(table: Table) -> None:
    ((heading, note),) = layout.notes(table)
    assert note == synthetic.NOTE
    assert heading.startswith("forget cka of grad_ascent, random_labels")


# ------------------------------------------------------------------------------------------ guide

DOCSTRING = """Mean of something.

    ``v = mean_i s_i``, in ``[0, 1]``; a
    second line.

    Another paragraph.

    Ideal: as retraining,
        to the last digit.

    Args:
        part: not shown.

    Differs: from nothing.
    Cost: none.
    """


def test_docstring_is_taken_apart() -> None:
    found = guide.parse("m", DOCSTRING)
    assert found.idea == "Mean of something."
    assert found.body == ("``v = mean_i s_i``, in ``[0, 1]``; a second line.", "Another paragraph.")
    assert found.sections == {
        "Ideal": "as retraining, to the last digit.",
        "Cost": "none.",
        "Differs": "from nothing.",
    }
    assert guide.pieces("a ``b`` c") == [(False, "a "), (True, "b"), (False, " c")]
    assert guide.parse("m", "").idea == ""


def test_guide_explains_every_registered_metric() -> None:
    text = guide.to_markdown()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == metrics.names()
    assert "``" not in text
    assert all(guide.entry(name).idea for name in metrics.names())


def test_guide_of_a_report_names_its_columns(table: Table, page: str) -> None:
    found = {
        item.name: item.headings
        for item in guide.entries(Report("r", (table,)), html._headings(Report("r", (table,))))
    }
    assert found["accuracy"] == ("forget accuracy", "retain accuracy", "test accuracy")
    assert found["svc"] == ("forget membership (svc-confidence)",)
    assert "registered as <code>accuracy</code>" in page
    assert "population" not in found


def test_a_score_knows_its_metric() -> None:
    score = Score(name="x", value=1.0, n=1, target="low", unit="ratio", metric="jensen_shannon")
    assert guide.registered(Score.from_json(score.to_json())) == "jensen_shannon"
    assert guide.registered(replace(score, metric="")) is None
    assert guide.registered(replace(score, metric="", name="average gap")) == "average_gap"


# ------------------------------------------------------------------------------------------- card


def test_card_never_raises_a_guarantee(table: Table) -> None:
    exact = replace(next(r for r in table.rows if r.name == "npo"), name="again", method={"kind": "retrain"})
    strange = replace(exact, name="strange", method=None)
    text = card.to_markdown(Report("r", (replace(table, rows=(*table.rows, exact, strange)),)))
    assert re.search(r"^- again \(`retrain`\): \*\*exact\*\*", text, re.MULTILINE)
    assert re.search(r"^- salun, npo.*\*\*none \(approximate\)\*\*", text, re.MULTILINE)
    assert re.search(r"^- .*strange: \*\*none \(unknown method\)\*\*", text, re.MULTILINE)


def test_card_says_what_it_must_and_no_more(tmp_path: Path) -> None:
    report = synthetic.report()
    text = report.to_markdown()
    for needed in (
        "500 examples of 5,000 (10.0%)",
        "9f2c" * 8,
        "no difference from retraining was found beyond the margin at 95 % on forget accuracy",
        "Doing nothing is within the noise of retraining on",
        "MIA-efficacy as published",
        *card.LIMITS,
        "2 cores, 16 GiB <memory>",
        "torch `2.13.0`",
        "lr: 0.013",
        "expunge run experiment.yaml",
    ):
        assert needed in text, needed
    assert not re.search(r"\b(deleted|proved|proves|proof|erased|guaranteed|safe|compliant)\b", text)
    assert "<b>evil" not in text
    assert Report.from_json(report.to_json()).to_markdown() == text
    assert report.to_card(tmp_path / "card.md").read_text(encoding="utf-8") == text


def test_card_of_an_empty_report() -> None:
    assert "no forget set" in card.to_markdown(Report("empty", ()))


# ------------------------------------------------------------------------------------ old results


def test_results_of_before_can_still_be_read() -> None:
    report = Report.read(OLD)
    raw = json.loads(OLD.read_text(encoding="utf-8"))
    assert "verdicts" not in raw["tables"][0]["rows"][0]
    assert len(report.tables) == len(raw["tables"])
    first = Report(report.name, report.tables[:1], report.provenance)
    for form in (str(first), first.to_markdown()):
        assert "equivalent" in form or "inconclusive" in form or "=" in form
        assert summary.CAVEAT.split(":")[0] in re.sub(r"\s+", " ", form)
    table = first.tables[0]
    assert all(row.classes == [] and row.worst == [] for row in table.rows)
    assert breakdown.classes(table) == breakdown.examples(table) == []
    assert {guide.registered(score) for score in table.columns().values()} >= {"accuracy", "svc", "cost"}
