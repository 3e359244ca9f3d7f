"""Corrective unlearning: only a part of the manipulated data is known."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError
from expunge.searches.manipulated import Manipulated
from expunge.tasks import Classification
from expunge.training.session import Session

TASK = Classification(2)


@pytest.fixture
def data() -> ArrayData:
    marked = torch.zeros(100, dtype=torch.long)
    marked[::5] = 1
    return ArrayData({"inputs": torch.zeros(100, 2), "targets": marked, "manipulated": marked})


def found(data: ArrayData, known: float = 1.0, seed: int = 0, session: int = 0) -> list[int]:
    search = Manipulated(known=known, seed=seed)
    return search.search(nn.Linear(2, 2), data, TASK, Session(session)).ids.tolist()


def test_all_or_a_part_of_the_manipulated_examples(data: ArrayData) -> None:
    assert found(data) == list(range(0, 100, 5))
    part = found(data, 0.3)
    assert len(part) == 6
    assert set(part) < set(range(0, 100, 5))
    assert len(found(data, 1e-6)) == 1
    search = Manipulated(known=0.3)
    said = search.search(nn.Linear(2, 2), data, TASK, Session(0)).description
    assert said == "6 of the 20 manipulated examples"


def test_more_known_holds_less_known(data: ArrayData) -> None:
    sets = [set(found(data, known)) for known in (0.1, 0.25, 0.5, 0.9, 1.0)]
    assert [len(ids) for ids in sets] == [2, 5, 10, 18, 20]
    assert all(small < large for small, large in pairwise(sets))


def test_the_draw_depends_on_its_seed_and_not_on_the_order_of_the_data(data: ArrayData) -> None:
    shuffled = data.subset(torch.randperm(100, generator=torch.Generator().manual_seed(3)))
    assert found(shuffled, 0.5) == found(data, 0.5)
    assert found(data, 0.5, session=9) == found(data, 0.5)
    assert found(data, 0.5, seed=1) != found(data, 0.5)


def test_data_that_does_not_say_what_is_manipulated_is_refused(data: ArrayData) -> None:
    plain = ArrayData({"inputs": torch.zeros(4, 2), "targets": torch.zeros(4, dtype=torch.long)})
    with pytest.raises(DataError, match="no column 'manipulated'. Use the data set 'poisoned'"):
        Manipulated().check(plain, TASK)
    with pytest.raises(DataError, match="marked as manipulated"):
        Manipulated().check(data.subset([1, 2, 3]), TASK)
    with pytest.raises(DataError, match="nothing would be kept"):
        Manipulated().check(data.subset([0, 5]), TASK)


@pytest.mark.parametrize("known", [0.0, 1.5, -0.1])
def test_the_known_fraction_is_a_fraction(known: float) -> None:
    with pytest.raises(ConfigError, match="known"):
        Manipulated(known=known)
