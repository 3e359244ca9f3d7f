"""Pictures before and after, in the page and in the file."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests.evaluation.painters import GALLERY, READ, Painter, evidence
from tests.report import synthetic

from expunge.evaluation import breakdown as kept
from expunge.evaluation import gallery as galleries
from expunge.evaluation.metrics.unlearn_canvas import UnlearningAccuracy
from expunge.evaluation.report import Report
from expunge.evaluation.table import Row, Table
from expunge.report import breakdown, html


def pixels(png: str) -> list[int]:
    return list(Image.open(io.BytesIO(base64.b64decode(png))).getpixel((0, 0)))


def test_a_few_prompts_are_kept_with_the_same_noise_as_the_metrics_saw() -> None:
    model = Painter({(1, o): (0, o) for o in range(3)})
    found = evidence(model)
    UnlearningAccuracy(**READ)(found)
    calls = model.calls
    drawn = kept.gallery(found)
    assert model.calls == calls  # those that are there already
    assert len(drawn) == 6 * 2
    assert [one["forgotten"] for one in drawn] == [True] * 6 + [False] * 6
    assert [one["seed"] for one in drawn[:2]] == list(GALLERY.seeds)
    red = {one["prompt"]: pixels(one["png"])[0] for one in drawn}
    assert red["a star image in mosaic style"] == round(255 / 4)  # painted as a photo


def test_without_metrics_that_draw_only_these_are_drawn_and_a_random_set_is_no_concept() -> None:
    found, plain = evidence(Painter()), evidence(Painter(), range(0, 24, 5))
    for one in (found, plain):
        one.subject.once(galleries.SHOWN, lambda: replace(GALLERY, seeds=(1, 2, 3)))
    assert len(kept.gallery(found)) == 6 * kept.EACH
    assert not found.subject.has(("pictures", GALLERY))
    drawn = kept.gallery(plain)
    assert len(drawn) == 6 * kept.EACH
    assert not any(one["forgotten"] for one in drawn)


def test_large_images_are_made_smaller() -> None:
    assert kept._small(torch.zeros(3, 256, 128, dtype=torch.uint8)).shape == (3, 64, 32)
    assert kept._small(torch.zeros(3, 16, 16, dtype=torch.uint8)).shape == (3, 16, 16)


@pytest.fixture(scope="module")
def table() -> Table:
    made = synthetic.table(methods={"salun": synthetic.METHODS["salun"]})

    def told(row: Row) -> list[dict[str, object]]:
        return [
            {
                "prompt": f"a <{name}> image",
                "seed": seed,
                "forgotten": name == "star",
                "png": f"{row.name}{seed}",
            }
            for name in ("star", "moon")
            for seed in (188, 288)
        ]

    rows = [
        replace(row, scores={}, histograms={}, classes=[], worst=[], gallery=[] if row.error else told(row))
        for row in made.rows
    ]
    return replace(made, rows=tuple(rows))


def test_a_line_for_each_model_and_a_column_for_each_prompt_and_seed(table: Table) -> None:
    gone, stay = breakdown.drawings(table)
    assert gone.columns == (("a <star> image", 188), ("a <star> image", 288))
    assert stay.columns[0] == ("a <moon> image", 188)
    assert [(line.name, line.role) for line in gone.lines] == [
        ("original", "original"), ("retrained 1", "retrained"), ("salun", "unlearned"),
    ]  # fmt: skip
    assert gone.lines[2].images == ("salun188", "salun288")


def test_the_page_shows_them_and_without_them_has_no_such_section(table: Table) -> None:
    page = html.render(Report("r", (table,), {}))
    assert "Pictures before and after" in page
    assert page.count("data:image/png;base64,salun188") == 2
    assert "<star>" not in page
    for tag in ("table", "tr", "td", "th", "h4", "div"):
        assert page.count(f"<{tag}>") + page.count(f"<{tag} ") == page.count(f"</{tag}>"), tag
    bare = replace(table, rows=tuple(replace(row, gallery=[]) for row in table.rows))
    assert "Pictures before and after" not in html.render(Report("r", (bare,), {}))


def test_they_survive_the_file_and_older_files_have_none(table: Table) -> None:
    written = table.to_json()
    assert [row.gallery for row in Table.from_json(written).rows] == [row.gallery for row in table.rows]
    for row in written["rows"]:
        del row["gallery"]
    assert not any(row.gallery for row in Table.from_json(written).rows)
