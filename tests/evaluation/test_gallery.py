"""What models draw: once, from the same noise, of every prompt; and which concept is meant."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.painters import GALLERY, OBJECTS, STYLES, Painter, data, evidence, rows
from torch import Tensor, nn

from expunge.data.arrays import ArrayData
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.evaluation import gallery
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.gallery import Gallery
from expunge.tasks import Classification, Diffusion, Task
from expunge.training.session import Session


def test_every_prompt_of_the_data_is_drawn_with_every_seed_and_once() -> None:
    model = Painter()
    found = evidence(model)
    drawn = gallery.pictures(found, GALLERY)
    assert drawn.images.shape == (12, 3, 8, 8)
    assert drawn.images.dtype == torch.uint8
    assert drawn.prompts.texts == tuple(f"a {o} image in {s} style" for s in STYLES for o in OBJECTS)
    assert drawn.rows.tolist() == [k for k in range(6) for _ in GALLERY.seeds]
    # red and green say what the prompt named: (k + 1) / 4 of 255
    assert (drawn.images[:, :2, 0, 0].float() / 255 * 4 - 1).round().long().tolist() == drawn.cells.tolist()
    calls = model.calls
    assert gallery.pictures(found, GALLERY) is drawn
    assert model.calls == calls
    gallery.pictures(found, Gallery(seeds=(1,), steps=2, guidance=1.0))
    assert model.calls > calls


def test_an_image_depends_on_its_prompt_and_seed_alone() -> None:
    found = evidence(Painter())
    few = gallery.pictures(found, GALLERY, [4, 1])
    whole = gallery.pictures(found, GALLERY)
    blue = whole.images[:, 2, 0, 0]
    assert len(blue.unique()) == 12  # every prompt and seed has a noise of its own
    chosen = [8, 9, 2, 3]
    assert torch.equal(few.images, whole.images[chosen])
    assert few.cells.tolist() == whole.cells[chosen].tolist()
    again = gallery.pictures(found, GALLERY, [4, 1])  # now of those that are there
    assert torch.equal(again.images, few.images)
    assert again.rows.tolist() == few.rows.tolist() == [4, 4, 1, 1]


def test_the_concept_is_found_from_the_data() -> None:
    for style, thing, domain, names in (
        ("mosaic", None, "style", ("mosaic",)),
        (None, "cross", "object", ("cross",)),
        ("mosaic", "cross", "pair", ("mosaic cross",)),
    ):
        found = evidence(Painter(), rows(style, thing))
        goal = gallery.target(found)
        assert (goal.domain, goal.names) == (domain, names)
        asked = gallery.prompts(found)
        expected = [all(w in text for w in (style, thing) if w) for text in asked.texts]
        assert goal.among(asked.cells).tolist() == expected
    two = gallery.target(evidence(Painter(), [*rows(None, "star"), *rows(None, "moon")]))
    assert (two.domain, two.names) == ("object", ("star", "moon"))


def test_a_forget_set_that_is_no_concept_is_refused() -> None:
    with pytest.raises(DataError, match="retained elsewhere"):
        gallery.target(evidence(Painter(), range(0, 24, 5)))
    kept = data().subset([*rows("photo", "star"), *rows("mosaic", "cross")])
    with pytest.raises(DataError, match="concepts of 2 domains"):
        gallery.target(evidence(Painter(), rows("mosaic", "cross"), train=kept))


@pytest.mark.parametrize("task", [Classification(3), Diffusion(timesteps=10, conditions=3)])
def test_models_that_draw_no_images_are_refused(task: Task) -> None:
    vectors = ArrayData({"inputs": torch.zeros(6, 4), "targets": torch.arange(6) % 3})
    candidate = Candidate("original", "original", nn.Linear(4, 3))
    split = Split.from_ids(vectors, [0, 3])
    found = Evaluation([candidate], split, task, Session(seed=0)).evidence(candidate)
    with pytest.raises(Unsupported, match="only a model that draws images"):
        gallery.pictures(found, GALLERY)


def test_models_of_classes_draw_their_classes() -> None:
    class Stamp(nn.Module):
        """Flat images whose level is the class."""

        def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
            return (condition / 2 - 0.5).view(-1, 1, 1, 1).expand_as(noisy)

    images = ArrayData(
        {"inputs": torch.zeros(6, 1, 4, 4), "targets": torch.arange(6) % 3}, class_names=("a", "b", "c")
    )
    task = Diffusion(timesteps=10, conditions=3, prediction="sample", schedule="cosine")
    candidate = Candidate("original", "original", Stamp())
    found = Evaluation([candidate], Split.from_ids(images, [1, 4]), task, Session(seed=0)).evidence(candidate)
    drawn = gallery.pictures(found, GALLERY)
    assert drawn.prompts.texts == ("a", "b", "c")
    assert drawn.images[:, 0, 0, 0].tolist() == [64, 64, 128, 128, 191, 191]
    goal = gallery.target(found)
    assert (goal.domain, goal.names) == ("class", ("b",))


def test_settings_are_checked_and_named_where_they_differ() -> None:
    for field, fields in (
        ("seeds", {"seeds": ()}), ("seeds", {"seeds": (1, 1)}), ("steps", {"steps": 0}),
        ("guidance", {"guidance": 0.0}),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            Gallery(**fields)
        assert caught.value.path == field
    assert Gallery().words == []
    assert GALLERY.words == ["2-seeds", "2-steps", "g1"]
