"""Drawn faces: distinct, the same again, and asked about without a name; pictures beside text."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from tests.eyes import SOURCE, faces

from expunge.data import faces as drawn
from expunge.data.faces import HARMLESS, Face, Faces, draw
from expunge.data.text import Record, Template
from expunge.data.tokenizers import train_tokenizer
from expunge.data.vision_text import IMAGE, VisionTextData
from expunge.errors import ConfigError, DataError


def test_a_face_is_the_same_again_and_its_views_differ_less_than_people_do() -> None:
    everyone = drawn.faces(30, seed=1)
    assert len(set(everyone)) == 30
    assert torch.equal(draw(everyone[0], 0), draw(everyone[0], 0))
    views = torch.stack([torch.stack([draw(face, view) for view in range(3)]) for face in everyone])
    assert views.shape == (30, 3, 3, 16, 16)
    assert views.min() >= -1
    assert views.max() <= 1
    flat = views.flatten(2)
    within = (flat[:, 0] - flat[:, 1]).square().mean(-1)
    assert (within > 0.001).all()
    first, second = flat[:, 0], flat[:, 1]
    between = torch.cdist(first, second).square() / first.shape[1]
    assert (between.argmin(1) == torch.arange(30)).float().mean() >= 0.9  # nearest by pixels alone


@pytest.mark.parametrize("mark", drawn.MARKS)
def test_every_part_of_a_face_shows(mark: str) -> None:
    plain = draw(Face("circle", "red", "white", "none"), 0)
    for other in (Face("square", "red", "white", mark), Face("circle", "blue", "white", mark),
                  Face("circle", "red", "green", mark)):  # fmt: skip
        assert (plain - draw(other, 0)).abs().max() > 0.3
    marked = draw(Face("circle", "red", "white", mark), 0)
    dark = (marked < -0.6).all(0).sum()
    assert (dark > 4) == (mark != "none")


def test_who_is_asked_about_has_no_name_in_a_question() -> None:
    train = faces().train
    assert len(train) == 4 * 2 + 4 * 3
    names = {word for record in train.records[:8] for word in record.subject.split()}
    for record in train.records[:8]:
        asked = " ".join([record.question, *record.questions.values()])
        assert not names & set(asked.replace("?", "").split())
        assert "idk" in record.answers
        assert record.answers["near_miss"] != record.answer
    assert {record.questions["near_miss"] for record in train.records[:8]} <= {
        phrasing.question for phrasing in HARMLESS.values()
    }


def test_wrong_names_share_no_word_with_the_true_one() -> None:
    for record in faces().train.records[:8:2]:
        own = set(record.answer.strip(".").split()[-2:])
        for name, answer in record.answers.items():
            if name.startswith("perturbed_"):
                assert not own & set(answer.strip(".").split())


def test_no_picture_or_person_is_in_two_parts() -> None:
    data = faces()
    parts = {"train": data.train, "test": data.test, "base": data.base, **data.probes}
    pixels = {name: {p.numpy().tobytes() for p in part.pictures} for name, part in parts.items()}
    assert not pixels["train"] & (pixels["test"] | pixels["base"] | pixels["views"])
    assert pixels["views"] == pixels["harmless"]  # the same further pictures of the people trained on
    people = {name: {r.subject for r in part.records} for name, part in parts.items()}
    assert people["views"] == {r.subject for r in data.train.records[:8]}
    assert not people["views"] & (people["base"] | people["test"])
    forgotten = {data.train.record(int(i)).subject for i in data.train.sets["forget25"]}
    kept = {
        r.subject for i, r in enumerate(data.train.records) if i not in data.train.sets["forget25"].tolist()
    }
    assert len(forgotten) == 1
    assert not forgotten & kept


def test_a_seed_decides_everything() -> None:
    again = SOURCE.load()
    assert again.train.fingerprint() == faces().train.fingerprint()
    other = Faces(people=4, background=4, held_out=4, nameless=2, views=1, size=8, patch=4, seed=1).load()
    assert other.train.fingerprint() != again.train.fingerprint()


def test_the_picture_stands_where_the_template_says_as_often_as_it_has_patches() -> None:
    data = faces().train
    image = data.tokenizer.convert_tokens_to_ids(IMAGE)
    (batch,) = data.batches([torch.tensor([0, 3, 9])], device="cpu")
    assert ((batch["input_ids"] == image).sum(1) == 4).all()
    assert ((batch["idk.input_ids"][:2] == image).sum(1) == 4).all()
    assert not (batch["labels"] == image).any()
    assert torch.equal(batch["pixel_values"], data.column("pixel_values")[[0, 3, 9]])
    few = data.subset([9, 0])
    assert torch.equal(few.column("pixel_values"), data.column("pixel_values")[[9, 0]])
    assert data.shown(0).startswith("prompt, no labels: <image> <image> <image> <image> ")
    answered = data.tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0], skip_special_tokens=True)
    assert answered == data.record(0).answer


def test_pictures_are_stored_once_and_count_in_the_fingerprint() -> None:
    data = faces().train
    assert len(data.pictures) == 8  # 20 records
    moved = VisionTextData(data.records, data.pictures + 0.1, data.column("picture"), data.tokenizer, 4)
    same = VisionTextData(data.records, data.pictures, data.column("picture"), data.tokenizer, 4)
    assert moved.fingerprint() != same.fingerprint()


def test_other_questions_are_asked_about_the_same_pictures() -> None:
    few = faces().train.subset([5, 2])
    shape = Record(question="Which shape is shown?", answer="A circle.", subject="somebody")
    posed = few.posed([shape, few.record(2)])
    assert torch.equal(posed.column("pixel_values"), few.column("pixel_values"))
    with pytest.raises(DataError, match="1 questions for 2 pictures"):
        few.posed([few.record(2)])


RECORD = Record(question="who", answer="a b")
WORDS = train_tokenizer(["who a b"])
WORDS.add_special_tokens({"additional_special_tokens": [IMAGE]})
PICTURES = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pictures": PICTURES.long()}, "pictures are floats of shape"),
        ({"pictures": PICTURES[0]}, "pictures are floats of shape"),
        ({"pictures": PICTURES / 0}, "'pictures' holds NaN in row 0"),
        ({"shown": [1]}, "record 0 is about picture 1, and there are 0..0"),
        ({"shown": [0, 0]}, "shown has 2 numbers for 1 records"),
        ({"image_tokens": 0}, "at least 1 token, got image_tokens=0"),
        ({"tokenizer": train_tokenizer(["who a b"])}, "does not know '<image>' as one token. Add it"),
        ({"template": Template(prompt="{question}")}, "must hold '<image>' once .*found it 0 times"),
        ({"template": Template(prompt="<image><image>{question}")}, "found it 2 times"),
        ({"records": [Record(question="who", answer="a <image>")], "template": Template(prompt="{question}")},
         "its answer never, found it 1 times"),
        ({"records": [Record(answer="a b")]}, "record 0 is a document, and a picture is asked about"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused(fields: dict[str, object], said: str) -> None:
    good = {"records": [RECORD], "pictures": PICTURES, "shown": [0], "tokenizer": WORDS, "image_tokens": 2}
    assert len(VisionTextData(**good)) == 1
    with pytest.raises(DataError, match=said):
        VisionTextData(**{**good, **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"people": 6}, "people: must be a multiple of 4"),
        ({"attributes": 13}, "attributes: must be 1..12"),
        ({"views": 0}, "views: must be at least 1"),
        ({"patch": 5}, "patch: must divide size 16, got 5"),
    ],
)
def test_numbers_out_of_range_are_refused(fields: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Faces(**fields)


def test_there_are_no_more_faces_than_there_are() -> None:
    with pytest.raises(ConfigError, match="there are 750 different faces"):
        drawn.faces(751)
