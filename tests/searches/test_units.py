"""What a forget set is made of."""

import pytest
import torch

from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.searches.units import Units, check_size
from expunge.tasks import Classification, Regression

TASK = Classification(4)


@pytest.fixture
def data() -> ArrayData:
    """Labels 0, 1 and 3; subjects 7 and 9; no prompts."""
    return ArrayData(
        {
            "inputs": torch.zeros(6, 2),
            "targets": torch.tensor([3, 0, 1, 3, 0, 3]),
            "subjects": torch.tensor([9, 9, 9, 7, 7, 9]),
        }
    )


def test_pieces_are_numbered_and_named(data: ArrayData) -> None:
    classes = Units.read(data, TASK, "class")
    assert (classes.of.tolist(), classes.names.tolist()) == ([2, 0, 1, 2, 0, 2], [0, 1, 3])
    subjects = Units.read(data, TASK, "subject")
    assert (subjects.of.tolist(), subjects.names.tolist()) == ([1, 1, 1, 0, 0, 1], [7, 9])
    examples = Units.read(data, TASK, "example")
    assert (len(classes), len(subjects), len(examples)) == (3, 2, 6)


def test_a_subset_has_the_pieces_that_are_left(data: ArrayData) -> None:
    left = data.subset([5, 1, 4])
    assert Units.read(left, TASK, "example").names.tolist() == [5, 1, 4]
    classes = Units.read(left, TASK, "class")
    assert (classes.of.tolist(), classes.names.tolist()) == ([1, 0, 0], [0, 3])


def test_means_and_rows_of_pieces(data: ArrayData) -> None:
    classes = Units.read(data, TASK, "class")
    assert classes.mean(torch.tensor([1.0, 2, 3, 5, 4, 6])).tolist() == [3, 3, 4]
    assert classes.rows(torch.tensor([2, 1])).tolist() == [0, 2, 3, 5]
    subjects = Units.read(data, TASK, "subject")
    assert subjects.rows(torch.tensor([0])).tolist() == [3, 4]


def test_sizes_count_pieces(data: ArrayData) -> None:
    classes = Units.read(data, TASK, "class")
    assert [classes.count(size) for size in (1, 2, 0.01, 0.5)] == [1, 2, 1, 2]
    with pytest.raises(DataError, match="of 3 classes leaves nothing to keep: the data has 3 classes"):
        classes.count(3)
    with pytest.raises(DataError, match="Ask for at most 1"):
        Units.read(data, TASK, "subject").count(0.9)
    for size in (0, -1, 0.0, 1.0, 2.5):
        with pytest.raises(ConfigError, match="size"):
            check_size(size)


def test_pieces_that_the_data_does_not_have_are_refused(data: ArrayData) -> None:
    with pytest.raises(DataError, match="does not say which prompt an example belongs to"):
        Units.read(data, TASK, "prompt")
    with pytest.raises(Unsupported, match="no classes"):
        Units.read(data, Regression(), "class")
    wide = ArrayData({"targets": torch.zeros(4), "subjects": torch.zeros(4, 2)})
    with pytest.raises(DataError, match=r"one subject for each example, got the shape \(4, 2\)"):
        Units.read(wide, TASK, "subject")
