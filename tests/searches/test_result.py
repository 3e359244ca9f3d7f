"""A forget set that is kept, compared, drawn, published and read again."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge import api
from expunge.data import ArrayData
from expunge.data.split import read_ids
from expunge.errors import DataError, RunError
from expunge.searches import SearchResult
from expunge.searches.given import Given
from expunge.tasks import Classification
from expunge.training.session import Session

TASK = Classification(2)


@pytest.fixture
def data() -> ArrayData:
    draws = torch.Generator().manual_seed(0)
    return ArrayData(
        {
            "inputs": torch.rand(20, 1, 4, 4, generator=draws),
            "targets": torch.arange(20) % 2,
            "subjects": torch.arange(20) // 6,
        }
    )


@pytest.fixture
def found(data: ArrayData) -> SearchResult:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    return api.search(model, data, TASK, method={"kind": "entanglement", "size": 5}, seed=4)


def result(*ids: int) -> SearchResult:
    return SearchResult(torch.tensor(ids), "by hand")


def test_a_saved_result_is_the_same_again(data, found, tmp_path: Path) -> None:
    found.save(tmp_path / "set.json")
    again = SearchResult.load(tmp_path / "set.json")
    assert again.to_json() == found.to_json()
    assert torch.equal(again.ids, found.ids)
    assert again.fingerprint == data.fingerprint()
    assert again.search["kind"] == "entanglement"
    assert again.search["seed"] == 4
    assert again.details["entanglement"] > 0


def test_overlap_is_of_this_set_and_jaccard_of_both() -> None:
    small, large, other = result(1, 2), result(0, 1, 2, 3), result(7)
    assert (small.overlap(large), large.overlap(small), small.overlap(other)) == (1.0, 0.5, 0.0)
    assert small.jaccard(large) == large.jaccard(small) == 0.5
    assert small.jaccard(small) == 1.0
    assert small.jaccard(other) == 0.0


def test_composition_counts_classes_and_subjects(data) -> None:
    chosen = result(0, 1, 2, 7, 19)
    assert chosen.composition(data) == {0: (2, 10), 1: (3, 10)}
    assert chosen.composition(data, "subjects") == {0: (3, 6), 1: (1, 6), 2: (0, 6), 3: (1, 2)}
    for column, said in (("prompts", "no column 'prompts'"), ("inputs", "no groups to count")):
        with pytest.raises(DataError, match=said):
            chosen.composition(data, column)
    with pytest.raises(DataError, match="forget id 20 is not in the training data"):
        result(3, 20).composition(data)


def test_a_set_of_other_data_is_refused_everywhere(data, found, tmp_path: Path) -> None:
    found.save(tmp_path / "set.json")
    changed = {name: data.column(name).clone() for name in ("inputs", "targets", "subjects")}
    changed["targets"][0] = 1
    other = ArrayData(changed)
    given = Given(path=tmp_path / "set.json")
    given.check(data, TASK)
    for act in (
        lambda: found.check(other),
        lambda: found.composition(other),
        lambda: found.draw(other, tmp_path / "set.png"),
        lambda: given.check(other, TASK),
        lambda: given.search(nn.Linear(1, 1), other, TASK, Session(0)),
    ):
        with pytest.raises(DataError, match="chosen from other training data"):
            act()
    assert not (tmp_path / "set.png").exists()


def test_an_index_file_is_a_forget_set_like_any_list_of_ids(data, found, tmp_path: Path) -> None:
    found.save(tmp_path / "set.json")
    read = Given(path=tmp_path / "set.json").search(nn.Linear(1, 1), data, TASK, Session(0))
    assert torch.equal(read.ids, found.ids)
    assert read.description == found.description
    assert torch.equal(read_ids(tmp_path / "set.json"), found.ids)
    (tmp_path / "list.json").write_text("[4, 2]")
    plain = Given(path=tmp_path / "list.json")
    assert plain.search(nn.Linear(1, 1), data, TASK, Session(0)).ids.tolist() == [2, 4]
    assert not plain.gives_classes


def test_an_index_file_of_a_class_is_known_to_be_one(data, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    method = {"kind": "loss_ranking", "size": 1, "unit": "class"}
    api.search(model, data, TASK, method=method).save(tmp_path / "class.json")
    given = Given(path=tmp_path / "class.json")
    assert given.gives_classes
    assert given.search(model, data, TASK, Session(0)).unit == "class"


@pytest.mark.parametrize(("text", "said"), [
    ("{", "not valid JSON"), ("[1, 2]", "not an index file of a forget set"),
    ('{"kind": "expunge forget set"}', "are empty"),
    ('{"kind": "expunge forget set", "ids": [1, 1]}', "1 more than once"),
    ('{"kind": "expunge forget set", "ids": [0.5]}', "must be integers"),
    ('{"kind": "expunge forget set", "ids": ["a"]}', "must be a list of integers"),
])  # fmt: skip
def test_files_that_are_no_index_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(DataError, match=said):
        SearchResult.load(tmp_path / "set.json")


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read '.*none.json'"):
        SearchResult.load(tmp_path / "none.json")
    with pytest.raises(RunError, match="cannot write"):
        result(1).save(tmp_path / "no" / "set.json")


def test_images_are_drawn_and_other_data_is_refused(data, found, tmp_path: Path) -> None:
    from PIL import Image

    found.draw(data, tmp_path / "set.png", ("even", "odd"))
    width, height = Image.open(tmp_path / "set.png").size
    assert width > height > 100
    with pytest.raises(RunError, match="cannot write"):
        found.draw(data, tmp_path / "set.docx")
    points = ArrayData({"inputs": torch.zeros(20, 3), "targets": torch.zeros(20, dtype=torch.long)})
    with pytest.raises(DataError, match="no images"):
        result(1, 2).draw(points, tmp_path / "points.png")


def test_the_published_file_says_all_that_others_need(found, tmp_path: Path) -> None:
    found.save(tmp_path / "set.json")
    value = json.loads((tmp_path / "set.json").read_text())
    assert set(value) == {"kind", "description", "unit", "fingerprint", "search", "details", "ids"}
    assert len(value["fingerprint"]) == 64
