import pytest
import torch

from expunge.data import ArrayData, CropFlip
from expunge.data.replaced import Replaced
from expunge.data.stream import StreamData
from expunge.errors import DataError

IDS = torch.tensor([7, 2, 5])
NEW = {"targets": torch.tensor([70, 20, 50])}


def _all(data, order, **options):
    (batch,) = data.batches([torch.as_tensor(order)], device="cpu", **options)
    return batch


@pytest.fixture
def data():
    X = torch.arange(20.0).view(10, 2)
    return ArrayData({"inputs": X, "targets": torch.arange(10)})


def test_named_examples_have_the_new_values_and_all_others_their_own(data):
    found = Replaced(data, IDS, NEW)
    assert found.column("targets").tolist() == [0, 1, 20, 3, 4, 50, 6, 70, 8, 9]
    batch = _all(found, [7, 0, 2])
    assert batch["targets"].tolist() == [70, 0, 20]
    assert torch.equal(batch["inputs"], data.column("inputs")[[7, 0, 2]])
    assert batch["ids"].tolist() == [7, 0, 2]
    assert data.column("targets").tolist() == list(range(10))


def test_ids_and_not_positions_are_what_counts(data):
    found = Replaced(data.subset([9, 7, 5, 3]), IDS, NEW)
    assert found.column("targets").tolist() == [9, 70, 50, 3]
    assert _all(found, [1, 3])["targets"].tolist() == [70, 3]
    assert found.subset([5, 9]).column("targets").tolist() == [50, 9]


def test_columns_of_any_shape_are_replaced(data):
    found = Replaced(data, IDS, {"inputs": -torch.ones(3, 2)})
    assert _all(found, [2, 3])["inputs"].tolist() == [[-1, -1], [6, 7]]


def test_the_training_view_is_augmented_by_the_same_draws():
    images = torch.rand(10, 1, 6, 6)
    plain = ArrayData({"inputs": images, "targets": torch.arange(10)}, augment=CropFlip(padding=2))
    found = Replaced(plain, IDS, NEW)
    first, second = (
        _all(d, range(10), generator=torch.Generator().manual_seed(0))["inputs"] for d in (plain, found)
    )
    assert found.augmented
    assert torch.equal(first, second)
    assert not torch.equal(first, images)


def test_a_stream_can_be_replaced_too(data):
    stream = StreamData([(x, int(y)) for x, y in zip(data.column("inputs"), range(10), strict=True)])
    found = Replaced(stream, IDS, NEW)
    assert _all(found, [2, 3])["targets"].tolist() == [20, 3]
    assert found.column("targets").tolist() == [0, 1, 20, 3, 4, 50, 6, 70, 8, 9]


def test_parts_of_one_root_can_be_joined_and_the_fingerprint_tells_it_apart(data):
    found = Replaced(data.subset([2, 3]), IDS, NEW)
    assert found.joined(data.subset([7])).column("targets").tolist() == [20, 3, 70]
    with pytest.raises(DataError, match="no parts of one data set"):
        found.joined(ArrayData({"targets": torch.arange(3)}))
    prints = {
        data.fingerprint(),
        Replaced(data, IDS, NEW).fingerprint(),
        Replaced(data, IDS, {"targets": torch.tensor([71, 20, 50])}).fingerprint(),
    }
    assert len(prints) == 3
    same = Replaced(data, IDS.flip(0), {"targets": NEW["targets"].flip(0)})
    assert same.fingerprint() in prints
    assert same.to("cpu").column("targets")[IDS].tolist() == [70, 20, 50]
