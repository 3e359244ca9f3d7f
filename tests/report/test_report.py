"""Reports in all their forms, on made-up numbers."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from tests.report import synthetic

from expunge.errors import RunError
from expunge.evaluation.report import Report
from expunge.evaluation.score import Score
from expunge.evaluation.table import NO_HEADROOM, Row, Table
from expunge.report import charts, html, layout, summary, tables, trade_off, verdicts


@pytest.fixture(scope="module")
def report() -> Report:
    return synthetic.report()


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return html.render(report)


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return tables.to_text(report, 120)


class Page(HTMLParser):
    """The tags, the ids, what is loaded and the visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "srcset", "href", "xlink:href", "action", "data"):
                (self.links if tag == "a" else self.loads).append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("•", ""))


# ------------------------------------------------------------------------------------------ HTML


def test_page_escapes_names(page: str) -> None:
    assert "<b>evil" not in page
    assert "&lt;b&gt;evil" in page
    assert "<demo>" not in page
    assert "<training>" not in page
    parsed = Page(page)
    assert not {"script", "link", "iframe", "ship", "named"} & set(parsed.tags)
    assert "<b>evil</b> & co" in parsed.text


def test_page_loads_nothing(page: str) -> None:
    parsed = Page(page)
    assert "http" not in page
    assert "@import" not in page
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in parsed.loads)
    assert all(target[1:] in parsed.ids for target in parsed.links)
    assert all(target in parsed.ids for target in re.findall(r"url\(#([^)]*)\)", page))


def test_page_has_no_id_twice(page: str) -> None:
    ids = Page(page).ids
    assert len(ids) == len(set(ids))


def test_page_balances_its_tags(page: str) -> None:
    for tag in ("section", "div", "table", "tr", "td", "figure", "svg", "dl", "details", "article", "p"):
        assert len(re.findall(rf"<{tag}[\s>]", page)) == page.count(f"</{tag}>"), tag


def test_page_says_everything(report: Report, page: str) -> None:
    seen = Page(page).text
    for table in report.tables:
        assert table.description in seen
        assert table.fingerprint in seen
        for picture in table.pictures:
            assert picture["png"] in page
            assert picture["id"] in seen
        for sentence in summary.finding(table).sentences:
            assert sentence in seen
    assert synthetic.ERROR in seen
    assert summary.CAVEAT in seen
    assert "lr: 0.013" in seen
    assert "2 cores, 16 GiB <memory>" in seen
    assert "72 min" in seen


@pytest.mark.parametrize("form", ["page", "text"])
def test_every_reason_and_verdict_is_said(form: str, report: Report, page: str, text: str) -> None:
    seen = flat({"page": Page(page).text, "text": text}[form])
    for table in report.tables:
        columns = layout.columns(table)
        lacking = [c for c in columns.values() if not c.is_cost and table.no_headroom(c.id)]
        assert all(f"{c.heading}: {NO_HEADROOM}" in seen for c in lacking)
        reasons = {s.reason for row in table.rows for s in row.scores.values() if s.reason}
        assert reasons
        assert all(reason in seen for reason in reasons)
    assert f"ssd failed: {synthetic.ERROR}" in seen


def test_same_report_same_bytes(tmp_path: Path) -> None:
    first, again = (Report("r", (synthetic.table(methods=FEW, pictures=2),), {"seed": 1}) for _ in range(2))
    page = html.render(first)
    assert html.render(again) == page
    assert html.render(Report.from_json(first.to_json())) == page
    path = first.to_html(tmp_path / "deep" / "report.html")
    assert path.read_bytes() == page.encode()
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_unwritable_place_is_a_run_error(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        report.to_csv(tmp_path / "file" / "report.csv")


# ------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize("width", [80, 120])
def test_text_fits(report: Report, width: int) -> None:
    lines = tables.to_text(report, width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("\x1b" in line or "…" in line for line in lines)


def test_text_shows_value_interval_and_distance(report: Report, text: str) -> None:
    row = next(line for line in text.splitlines() if re.match(r"\s*salun +\d", line))
    assert re.search(r"86\.\d \[\d\d\.\d, \d\d\.\d\] +[+−]\d\.\dσ =", row)
    assert re.search(r"\n +retrained ± noise +86\.\d ± 1\.\d", text)
    assert re.search(r"\n +headroom +8\.\dσ +none \(0\.\dσ\)", text)
    assert re.search(r"\n +margin +± [34]\.\d", text)
    assert all(f"  {mark}  " in text for mark in verdicts.MARKS.values())
    assert "not computed" in text
    assert re.search(r"ssd +failed", text)
    assert "<b>evil</b> & co" in text


def test_terminal_gets_colour(report: Report) -> None:
    console = Console(width=120, force_terminal=True, color_system="standard", record=True)
    with console.capture() as captured:
        tables.print_report(report, console)
    assert "\x1b[" in captured.get()


# ------------------------------------------------------------------------------------------- CSV


def test_csv_round_trips(report: Report, tmp_path: Path) -> None:
    with report.to_csv(tmp_path / "report.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    found = {(line["forget_set"], line["model"], line["metric"]): line for line in lines}
    expected = 0
    for table in report.tables:
        for row in table.rows:
            expected += len(row.scores) or 1
            for id_, score in row.scores.items():
                line = found[table.name, row.name, id_]
                assert (line["value"] == "") == math.isnan(score.value)
                assert line["reason"] == (score.reason or "")
                assert line["no_headroom"] == (table.no_headroom(id_) or "")
                verdict = table.verdicts(row).get(id_)
                assert line["verdict_kind"] == (verdict.kind if verdict else "")
                if verdict:
                    assert float(line["p_holm"]) == verdict.p_holm
                    assert float(line["p_equivalent"]) == verdict.p_equivalent
                    assert float(line["margin"]) == verdict.margin
                    assert (float(line["difference_low"]), float(line["difference_high"])) == verdict.interval
                    assert line["needs"] == verdict.needs
                    assert float(line["headroom"]) == table.anchors[id_].headroom
                assert (line["unit"], line["target"], int(line["n"])) == (score.unit, score.target, score.n)
                if score.reason is None:
                    assert float(line["value"]) == score.value
                if score.interval is not None:
                    assert (float(line["low"]), float(line["high"])) == score.interval
                units = table.noise_units(row, id_)
                assert line["noise_units"] == ("" if units is None else str(units))
    assert len(lines) == expected
    assert found["random", "ssd", ""]["reason"] == synthetic.ERROR


# --------------------------------------------------------------------------------------- summary


def test_clear_winner_is_named(report: Report) -> None:
    found = summary.finding(report.tables[0])
    assert (found.kind, found.nearest) == ("nearest", ("salun",))
    assert "salun" in found.headline
    better = synthetic.table(
        methods={"salun": synthetic.METHODS["finetune"], "npo": synthetic.METHODS["npo"]}
    )
    assert summary.finding(better).nearest == ("npo",)


def test_ties_are_ties() -> None:
    methods = {
        "a": synthetic.METHODS["salun"],
        "b": synthetic.METHODS["salun"],
        "c": synthetic.METHODS["finetune"],
    }
    found = summary.finding(synthetic.table(methods=methods))
    assert (found.kind, found.nearest) == ("tie", ("a", "b"))
    assert "tie" in found.headline
    assert "may be chance" in " ".join(found.sentences)


def test_no_headroom_is_said(report: Report) -> None:
    found = summary.finding(report.tables[2])
    assert (found.kind, found.nearest) == ("no headroom", ())
    assert "cannot show forgetting" in " ".join(found.sentences)


def test_worse_than_doing_nothing_is_said() -> None:
    far = (0.31, 0.95, 0.9, 0.1, 3, 6.0)
    found = summary.finding(synthetic.table(methods={"grad_ascent": far}))
    assert (found.kind, found.nearest) == ("not nearer", ())


def test_overlap_with_doing_nothing_is_no_win() -> None:
    near = (0.98, *synthetic.ORIGINAL[1:5], 3.0)
    found = summary.finding(synthetic.table(methods={"slow": near}))
    assert (found.kind, found.nearest) == ("unclear", ())


def test_without_models_or_anchors() -> None:
    assert summary.finding(synthetic.table(methods={})).kind == "no models"
    assert summary.finding(synthetic.table(retrained=0)).kind == "no anchors"
    assert "single retrained" in " ".join(summary.overview(Report("x", (synthetic.table(retrained=1),))))


def test_without_an_average_gap_the_mean_of_the_gaps_decides() -> None:
    source = synthetic.table()
    rows = [
        replace(row, scores={k: s for k, s in row.scores.items() if s.name != "average gap"})
        for row in source.rows
    ]
    found = summary.finding(replace(source, rows=tuple(rows)))
    assert "salun" in found.nearest


def test_nothing_is_said_to_be_certain(page: str, text: str) -> None:
    said = re.sub(r'<details class="metric">.*?</details>', "", page, flags=re.DOTALL)
    assert len(said) < len(page)  # the metrics' own docstrings may say that something is no proof
    for form in (said, text):
        assert not re.search(r"\b(deleted|proved|proves|proof|erased|guaranteed|safe)\b", form)


# ------------------------------------------------------------------------------------ odd tables


def score(value: float, name: str = "token accuracy", part: str = "forget") -> Score:
    return Score(name=name, part=part, value=value, n=9, target="retrained", unit="fraction")


def bare(*values: float) -> Table:
    """Original, two retrained and one unlearned model without intervals, test metrics or pictures."""
    roles = ("original", "retrained", "retrained", "unlearned")
    rows = []
    for i, (role, value) in enumerate(zip(roles, values, strict=True)):
        rows.append(Row(f"{role} {i} $x_1$ [red]", role, {"token accuracy.forget": score(value)}))  # type: ignore[arg-type]
    return Table("s", "", 9, 90, tuple(rows))


FEW = {name: synthetic.METHODS[name] for name in ("salun", "npo")}
ODD = {
    "infinite noise units": bare(0.9, 0.5, 0.5, 0.7),
    "zero noise": bare(0.5, 0.5, 0.5, 0.5),
    "one retrained": synthetic.table(retrained=1, methods=FEW),
    "no retrained": synthetic.table(retrained=0, methods=FEW),
    "no methods": synthetic.table(methods={}),
    "no rows": Table("s", "", 0, 0, ()),
    "infinite value": synthetic.changed(
        synthetic.table(methods=FEW),
        "salun",
        a=score(math.inf, "accuracy", "forget"),
        b=score(math.inf, "accuracy", "test"),
    ),
    "long names": synthetic.table(
        methods={"x" * 90: synthetic.METHODS["npo"], "森林 🌲": synthetic.METHODS["salun"]}
    ),
}


@pytest.mark.parametrize("table", ODD.values(), ids=ODD.keys())
def test_odd_tables_can_be_reported(table: Table, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    report = Report("odd", (table,))
    page = html.render(report)
    assert "http" not in page
    lines = tables.to_text(report, 120).splitlines()
    assert max(len(line) for line in lines) <= 120
    report.to_csv(tmp_path / "report.csv")
    assert not recwarn.list
    for row in table.rows:
        assert row.name in Page(page).text


def test_infinite_distance_is_shown() -> None:
    text = tables.to_text(Report("odd", (ODD["infinite noise units"],)), 120)
    assert "+∞σ" in text


def test_report_without_tables() -> None:
    empty = Report("empty", ())
    assert "no forget set" in str(empty)
    assert "no forget set" in html.render(empty)


# ---------------------------------------------------------------------------------------- charts


def test_labels_do_not_overlap(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = []
    inner = trade_off.labels._best

    def best(*arguments: object) -> object:
        boxes.append(inner(*arguments))  # type: ignore[arg-type]
        return boxes[-1]

    monkeypatch.setattr(trade_off.labels, "_best", best)
    assert trade_off.trade_off(report.tables[0], charts.marks(report), "x") is not None
    assert len(boxes) == len(synthetic.METHODS) + 2
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert sum(trade_off.labels._overlap(a, b) for a, b in pairs) == 0


def test_charts_leave_settings_alone(report: Report) -> None:
    import matplotlib as mpl

    mpl.rcParams["font.size"] = 13
    before = dict(mpl.rcParams)
    charts.average_gaps(report, "x")
    assert dict(mpl.rcParams) == before


def test_no_headroom_is_hatched(report: Report) -> None:
    hatched = charts.average_gaps(report, "x")
    assert hatched is not None
    assert "<pattern" in hatched
    plain = charts.average_gaps(Report("x", report.tables[:2]), "x")
    assert plain is not None
    assert "<pattern" not in plain


def test_text_needs_no_drawing() -> None:
    program = (
        "import sys, expunge, expunge.report.tables\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
