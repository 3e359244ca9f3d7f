"""The search for all images of a concept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge import config
from expunge.data import ArrayData
from expunge.data.canvas import Canvas
from expunge.errors import ConfigError, DataError
from expunge.searches.base import searches
from expunge.searches.concept_set import ConceptSet
from expunge.tasks import Classification
from expunge.training.session import Session

TRAIN = Canvas(
    styles=("photo", "neon"), objects=("star", "ring", "moon"), per_cell=2, test_per_cell=1, size=8
).load().train  # fmt: skip
TASK = Classification(2)


def found(domain: str, name: str) -> tuple[list[int], str]:
    search = ConceptSet(domain=domain, name=name)
    search.check(TRAIN, TASK)
    result = search.search(nn.Identity(), TRAIN, TASK, Session(seed=0))
    return result.ids.tolist(), result.description


def test_a_style_an_object_and_a_pair() -> None:
    assert found("style", "neon") == ([6, 7, 8, 9, 10, 11], "all images of the style neon")
    assert found("object", "ring") == ([2, 3, 8, 9], "all images of the object ring")
    assert found("pair", "neon ring") == ([8, 9], "all images of neon ring")


def test_a_part_keeps_its_ids() -> None:
    part = TRAIN.subset([9, 2, 0, 5])
    result = ConceptSet(domain="object", name="ring").search(nn.Identity(), part, TASK, Session(seed=0))
    assert result.ids.tolist() == [2, 9]


def test_it_comes_from_a_configuration_and_needs_no_model() -> None:
    search = config.build(searches, {"kind": "concept_set", "domain": "style", "name": "neon"})
    assert search == ConceptSet(domain="style", name="neon")
    assert not search.reads_model


@pytest.mark.parametrize(
    ("domain", "name", "says"),
    [
        ("styles", "neon", "no domain 'styles'. It has: style, object, pair"),
        ("style", "neom", "no style 'neom'. Did you mean 'neon'"),
        ("pair", "ring neon", "no style 'ring'"),
        ("pair", "neon", "names 2 concepts"),
    ],
)
def test_a_concept_that_is_not_in_the_data(domain: str, name: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        ConceptSet(domain=domain, name=name).check(TRAIN, TASK)


def test_nothing_found_nothing_kept_no_concepts_no_name() -> None:
    photos = TRAIN.subset([0, 1, 2])
    with pytest.raises(DataError, match="no training image shows neon"):
        ConceptSet(domain="style", name="neon").check(photos, TASK)
    with pytest.raises(DataError, match="nothing would be kept"):
        ConceptSet(domain="style", name="photo").check(photos, TASK)
    plain = ArrayData({"inputs": torch.zeros(4, 2), "targets": [0, 1, 0, 1]})
    with pytest.raises(DataError, match="has no concepts"):
        ConceptSet(domain="style", name="photo").check(plain, TASK)
    with pytest.raises(ConfigError, match="name the concept"):
        ConceptSet(domain="style", name=" ")
