"""Folders of images with captions: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expunge.data.image_folder import read_captions, read_images
from expunge.data.prompted import prompted, read_prompts
from expunge.errors import DataError

Image = pytest.importorskip("PIL.Image")


def write(folder: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


def halves(path: Path) -> Path:
    """40 × 20 pixels, the left half red and the right half blue."""
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    image.save(path)
    return path


def test_captions_come_in_the_order_of_the_lines(tmp_path):
    for name in ("b.png", "a.png"):
        halves(tmp_path / name)
    lines = ({"file_name": "b.png", "text": "a  star"}, "", {"file_name": "a.png", "text": "a moon"})
    assert read_captions(write(tmp_path, *lines)) == [
        (tmp_path / "b.png", "a star"),
        (tmp_path / "a.png", "a moon"),
    ]
    other = write(tmp_path, {"file_name": "a.png", "caption": "a ring"})
    assert read_captions(other, column="caption") == [(tmp_path / "a.png", "a ring")]


def test_images_are_scaled_to_cover_and_cut_in_the_middle(tmp_path):
    """Of 40 × 20 the middle 20 × 20 stays: red and blue halves, each 4 of 8 pixels wide."""
    (found,) = read_images([halves(tmp_path / "a.png")], (8, 8))
    assert found.shape == (3, 8, 8)
    assert torch.allclose(found[:, :, 1], torch.tensor([1.0, 0, 0])[:, None].expand(3, 8), atol=0.1)
    assert torch.allclose(found[:, :, 6], torch.tensor([0.0, 0, 1])[:, None].expand(3, 8), atol=0.1)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "is empty. Write one line for each image"),
        (["{"], "line 1 is no JSON"),
        ([{"text": "a star"}], "line 1 has no 'file_name'"),
        ([{"file_name": "a.png", "text": " "}], "line 1 has no 'text'"),
        (
            [{"file_name": "a.png", "text": "a"}, {"file_name": "c.png", "text": "b"}],
            "line 2: there is no im",
        ),
    ],
)
def test_malformed_metadata_is_refused_with_its_line(tmp_path, lines, said):
    halves(tmp_path / "a.png")
    with pytest.raises(DataError, match=said):
        read_captions(write(tmp_path, *lines))


def test_no_folder_and_no_image_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*metadata.jsonl': No such file"):
        read_captions(tmp_path / "nowhere")
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DataError, match=r"a.png': it is damaged or no image"):
        read_images([tmp_path / "a.png"], (8, 8))


def test_prompts_of_concepts_take_turns():
    side = prompted(["photo style", "a dog"], (), 8, first=1)
    assert side.captions == (
        "photo style", "an image in photo style", "a picture in photo style",
        "a dog", "an image of a dog", "a picture of a dog",
        "photo style", "an image in photo style",
    )  # fmt: skip
    assert side.concepts == (1, 1, 1, 2, 2, 2, 1, 1)
    assert prompted(["dog"], ("a {} and a {}", "as it is"), 1, first=0).captions == (
        "a dog and a dog",
        "as it is",
    )


def test_a_file_of_prompts_has_one_a_line(tmp_path):
    (tmp_path / "prompts.txt").write_text("a star\n\n a moon \n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == ["a star", "a moon"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="is empty. Write one prompt a line"):
        read_prompts(tmp_path / "empty.txt")
