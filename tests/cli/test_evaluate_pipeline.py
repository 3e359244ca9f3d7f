"""``expunge evaluate`` on folders of pipelines: what it reads, what it measures, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import judging, pipelines
from expunge.cli.main import main
from expunge.data.captions import CaptionedImages
from expunge.errors import DataError

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

from tests import canvases  # noqa: E402
from tests.cli import onlookers, painters  # noqa: E402

EVALUATE = "evaluate --engine.device cpu --seeds 2 --steps 2 --guidance 2 --original before --unlearned after"
CANVAS = ["--data", "{kind: canvas, styles: [sketch, mosaic], objects: [circle, square], per_cell: 3, "
          "test_per_cell: 1}"]  # fmt: skip
READER = ["--judge", "tests.cli.onlookers:reader"]
STYLE = ["--concept", "mosaic style"]
PROMPTS = [
    f"a {thing} image in {style} style" for style in ("sketch", "mosaic") for thing in ("circle", "square")
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained pipelines: before, after and an honest one, of the canvas's tokens; two that differ."""
    place = tmp_path_factory.mktemp("judged")
    micro = canvases.micro()
    for seed, name in enumerate(("before", "after", "honest")):
        torch.manual_seed(seed)
        model = micro.recipe.model().eval()
        model.pipeline(micro.data.tokenizer, micro.task).save_pretrained(place / name)
    painters.pipeline().save_pretrained(place / "foreign")
    task = canvases.Diffusion(prediction="noise", schedule="linear")
    micro.model.pipeline(micro.data.tokenizer, task).save_pretrained(place / "louder")
    draws = torch.Generator().manual_seed(0)
    for style in ("mosaic", "sketch"):
        for thing in ("circle", "square"):
            (place / "photos" / style / thing).mkdir(parents=True)
            for number in range(4):
                pixels = torch.randint(256, (8, 8, 3), generator=draws, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / "photos" / style / thing / f"{number}.png")
    return place


@pytest.fixture
def place(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folders)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    return folders


def evaluate(*words: str) -> int:
    return main([*EVALUATE.split(), *words])


def scores(folder: Path, row: str) -> dict[str, dict[str, Any]]:
    table = json.loads((folder / "result.json").read_text(encoding="utf-8"))["tables"][0]
    (found,) = (one for one in table["rows"] if one["name"] == row)
    return {score["name"] + "." + score["part"]: score for score in found["scores"]}


def test_the_accuracies_are_those_of_what_expunge_sample_draws(place, tmp_path, capsys):
    """Drawn once more by ``pipelines.sample`` and judged by hand."""
    assert evaluate(*CANVAS, *STYLE, *READER, "--retrained", "honest", "--directory", str(tmp_path)) == 0
    drawn = pipelines.sample(
        ["after"], PROMPTS, seeds=range(2), drawing=pipelines.Drawing(steps=2, guidance=2.0)
    )["after"].flatten(0, 1)  # fmt: skip
    images = (drawn * 255).round() / 255
    with torch.no_grad():
        style, thing = (
            onlookers.reader(domain, ("", ""))(images).argmax(1).view(4, 2) for domain in ("style", "object")
        )
    expected = {
        "unlearning accuracy.forget": (style[2:] != 1).float().mean(),
        "in-domain accuracy.retain": (style[:2] == 0).float().mean(),
        "cross-domain accuracy.retain": (thing[:2] == torch.tensor([[0], [1]])).float().mean(),
        "conditioned accuracy.forget": (thing[2:] == torch.tensor([[0], [1]])).float().mean(),
    }
    found = scores(tmp_path, "after")
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(float(value)), name
        assert "These numbers cannot be trusted" in found[name]["details"]["note"]
    assert found["Fréchet distance.retain"]["value"] > 0
    assert "the CLIP pair cannot be trusted" in found["CLIP alignment.retain"]["reason"]
    assert scores(tmp_path, "original")["loss.forget"]["value"] != found["loss.forget"]["value"]
    assert "no verdicts" not in capsys.readouterr().out


def test_the_report_shows_what_they_draw_from_the_same_noise(place, tmp_path, capsys):
    metrics = ["--metrics", "unlearning_accuracy", *READER]
    shutil.copytree("before", tmp_path / "same")
    assert (
        evaluate(
            *CANVAS, *STYLE, *metrics, "--unlearned", str(tmp_path / "same"), "--directory", str(tmp_path)
        )
        == 0
    )
    assert "No retrained pipeline was given, so there are values but no verdicts" in capsys.readouterr().out
    rows = {
        row["name"]: row for row in json.loads((tmp_path / "result.json").read_text())["tables"][0]["rows"]
    }
    assert list(rows) == ["original", "after", "same"]
    assert [len(row["scores"]) for row in rows.values()] == [1, 1, 1]
    pictures = {name: [one["png"] for one in row["gallery"]] for name, row in rows.items()}
    assert len(pictures["original"]) == 8
    assert pictures["same"] == pictures["original"]
    assert pictures["after"] != pictures["original"]
    assert {one["prompt"] for one in rows["after"]["gallery"] if one["forgotten"]} == set(PROMPTS[2:])
    assert pictures["after"][0] in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_judges_are_trained_on_a_folder_of_images_and_kept(place, tmp_path):
    words = ["--data", "photos", "--concept", "Circle", "--metrics", "unlearning_accuracy", "--directory"]
    assert evaluate(*words, str(tmp_path)) == 0
    kept = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert len(kept) == 2
    assert all(name.startswith("judge_of_") for name in kept)
    found = scores(tmp_path, "after")["unlearning accuracy.forget"]
    assert found["details"]["forgotten"] == "circle"
    assert set(found["details"]["prompts"]) == {
        "A circle image in mosaic style.", "A circle image in sketch style.",
    }  # fmt: skip
    assert evaluate(*words, str(tmp_path)) == 0
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == kept
    assert scores(tmp_path, "after")["unlearning accuracy.forget"] == found


def test_a_guarded_pipeline_draws_under_its_guard(place, tmp_path):
    made = ["unlearn", "--pipeline", "before", *STYLE, "--method", "seot", "--out", str(tmp_path / "guarded")]
    assert main(made) == 0
    report = judging.judge(
        "before", {"as it is": "before", "guarded": tmp_path / "guarded"},
        data={"kind": "canvas", "styles": ["sketch", "mosaic"], "objects": ["circle", "square"], "size": 8,
              "per_cell": 3, "test_per_cell": 1},
        concept="mosaic style", gallery=judging.Gallery(seeds=(0,), steps=2, guidance=2.0),
        judge=judging.Judge(load="tests.cli.onlookers:reader"), metrics=["unlearning_accuracy"],
    )  # fmt: skip
    shown = {row.name: {one["prompt"]: one["png"] for one in row.gallery} for row in report.tables[0].rows}
    assert shown["as it is"] == shown["original"]
    moved = [prompt for prompt in PROMPTS if shown["guarded"][prompt] != shown["original"][prompt]]
    assert moved == PROMPTS[2:]


def test_what_words_name_in_the_data():
    data = canvases.micro().data
    names = {"sketch": "artist_sketch", "mosaic": "sketch"}
    other = CaptionedImages(
        data.column("inputs"), data.captions, data.tokenizer,
        concepts={"style": tuple(names.values()), "object": data.concepts["object"]},
        columns={"style": data.column("style"), "object": data.column("object")},
    )  # fmt: skip
    style, thing = data.column("style"), data.column("object")
    for words, wanted in {
        "mosaic": style == 1, "mosaic style": style == 1, "Mosaic": style == 1, "circle": thing == 0,
        "a circle in mosaic style": (style == 1) & (thing == 0), "mosaic circle": (style == 1) & (thing == 0),
    }.items():  # fmt: skip
        assert judging.concept_ids(data, words).tolist() == data.ids[wanted].tolist(), words
    assert judging.concept_ids(other, "artist sketch style").tolist() == data.ids[style == 0].tolist()
    assert judging.concept_ids(other, "sketch style").tolist() == data.ids[style == 1].tolist()
    with pytest.raises(DataError, match="could be the style sketch or mosaic"):
        judging.concept_ids(data, "sketch or mosaic")
    with pytest.raises(DataError, match="shows no 'mosaik'. Did you mean 'mosaic'"):
        judging.concept_ids(data, "mosaik")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*CANVAS], "concept: say what the pipelines were to forget"),
        ([*STYLE], "data: give images of all concepts"),
        ([*CANVAS, "--concept", "neon style"], "the data shows no 'neon style'"),
        ([*CANVAS, *STYLE, "--forget", "ids.txt"], "forget: does not go with pipelines"),
        ([*CANVAS, *STYLE, "--train", "{epochs: 3}"], "train: does not go with pipelines"),
        ([*CANVAS, *STYLE, "--guidance", "0"], "guidance: must be above 0"),
        ([*CANVAS, *STYLE, "--metrics", "nonsense"], "nonsense"),
        ([*CANVAS, *STYLE, "--judge", "tests.cli.onlookers:nobody"], "has no function 'nobody'"),
        ([*STYLE, "--data", "{kind: canvas, size: 16}"], "canvas has 16 pixels along a side and"),
        ([*STYLE, "--data", "digits"], "pipelines are judged on captioned images with concepts"),
        ([*STYLE, "--data", "honest"], "has no metadata.jsonl and no images in <style>/<object>/"),
        ([*CANVAS, *STYLE, "--unlearned", "nowhere"], "'nowhere' has no model_index.json"),
        ([*CANVAS, *STYLE, "--retrained", "photos"], "'photos' has no model_index.json"),
        ([*CANVAS, *STYLE, "--unlearned", "foreign"], "'foreign' and 'before' have tokens that differ"),
        ([*CANVAS, *STYLE, "--unlearned", "louder"], "'louder' and 'before' have noise schedules that"),
        ([*CANVAS, *STYLE, "--unlearned", "deaf"], "has no text encoder, so no prompts to erase from"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(place, tmp_path, capsys, words, said):
    if "deaf" in words:
        words = [word.replace("deaf", str(tmp_path / "deaf")) for word in words]
        shutil.copytree("before", tmp_path / "deaf")
        index = json.loads((tmp_path / "deaf" / "model_index.json").read_text())
        index["text_encoder"] = [None, None]
        (tmp_path / "deaf" / "model_index.json").write_text(json.dumps(index))
    assert evaluate(*words, "--directory", str(tmp_path / "never")) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "never" / "result.json").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate --original a.pt --unlearned b.pt", "forget: say what was to be forgotten; of pipelines"),
        ("evaluate --original photos --unlearned b --concept x --data photos", "is no pipeline of diffusers"),
        ("evaluate digits --original before --unlearned after --concept x", "pipelines need no experiment"),
        ("evaluate --original a.pt --unlearned b.pt --forget i.txt --steps 3", "steps: goes with folders of"),
    ],
)
def test_options_that_do_not_go_together(place, capsys, line, said):
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err
