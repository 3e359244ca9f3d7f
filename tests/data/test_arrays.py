"""Data sets addressed by ids: batches, subsets, augmentation, fingerprints, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from expunge.data import ArrayData, CropFlip, StreamData, fixed_order, random_order
from expunge.data.arrays import batch_count
from expunge.errors import ConfigError, DataError


def images(n: int = 6, side: int = 8) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=seed(0))


def seed(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def toy(n: int = 6) -> ArrayData:
    return ArrayData({"inputs": torch.arange(2 * n).view(n, 2).float(), "targets": torch.arange(n) % 3})


class Pairs(Dataset):  # type: ignore[type-arg]
    """Tuples of the number ``i`` and its parity."""

    def __init__(self, n: int) -> None:
        self.n, self.reads = n, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.reads += 1
        return torch.tensor([float(i)]), i % 2


class Noisy(Pairs):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.tensor([float(i)]) + torch.rand(1) / 2, i % 2


def test_batches_hold_the_asked_positions_in_order() -> None:
    data = toy().subset([5, 0, 3])
    first, second = data.batches([torch.tensor([2, 0]), torch.tensor([1])], device="cpu")
    assert first["ids"].tolist() == [3, 5]
    assert first["inputs"].tolist() == [[6.0, 7.0], [10.0, 11.0]]
    assert first["targets"].tolist() == [0, 2]
    assert second["ids"].tolist() == [0]


def test_ids_are_stable_under_subsets_of_subsets() -> None:
    data = toy().subset([5, 1, 3]).subset([3, 5])
    assert data.ids.tolist() == [3, 5]
    assert data.ids.dtype == torch.int64
    assert data.column("targets").tolist() == [0, 2]
    assert len(data) == 2


def test_subsets_share_the_storage() -> None:
    root = toy()
    view = root.subset([1, 2])
    assert view._storage is root._storage
    assert view.to("cpu")._storage is root.to("cpu")._storage


def test_uint8_inputs_become_float_at_batch_time() -> None:
    stored = images()
    data = ArrayData({"inputs": stored, "targets": torch.zeros(6)})
    (batch,) = data.batches(fixed_order(6, 6), device="cpu")
    assert batch["inputs"].dtype == torch.float32
    assert torch.equal(batch["inputs"], stored.float() / 255)
    assert data.column("inputs").dtype == torch.uint8


def test_types_of_columns() -> None:
    data = ArrayData(
        {
            "inputs": np.zeros((2, 3)),
            "targets": np.array([1, 2], dtype=np.uint8),
            "weight": torch.zeros(2, dtype=torch.float64),
        }
    )
    assert data.column("inputs").dtype == torch.float32
    assert data.column("targets").dtype == torch.int64
    assert data.column("weight").dtype == torch.float64
    assert data.column("ids").tolist() == [0, 1]


def test_numpy_arrays_are_copied() -> None:
    array = np.zeros(3, dtype=np.float32)
    data = ArrayData({"targets": array})
    array[0] = 7
    assert data.column("targets")[0] == 0


def test_orders() -> None:
    order = random_order(10, 4, seed(1))
    assert [len(part) for part in order] == [4, 4, 2]
    assert sorted(torch.cat(order).tolist()) == list(range(10))
    assert torch.equal(torch.cat(order), torch.cat(random_order(10, 4, seed(1))))
    assert [part.tolist() for part in fixed_order(5, 2)] == [[0, 1], [2, 3], [4]]
    with pytest.raises(ConfigError, match="batch_size: a batch holds at least 1 example, got 0"):
        fixed_order(5, 0)


def test_crop_flip_moves_pixels_and_nothing_else() -> None:
    """Each result is the mirrored or plain image, shifted by a whole number of pixels, zero outside."""
    pictures = images(40, 6) // 2 + 1  # no pixel is zero
    result = CropFlip(padding=2)(pictures, seed(3))
    padded = torch.nn.functional.pad(pictures, (2, 2, 2, 2))
    seen = set()
    for before, after in zip(padded, result, strict=True):
        found = [
            (y, x, flip)
            for y in range(5)
            for x in range(5)
            for flip in (False, True)
            if torch.equal(
                before[:, y : y + 6, x : x + 6].flip(-1) if flip else before[:, y : y + 6, x : x + 6], after
            )
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {flip for _, _, flip in seen} == {False, True}
    assert {y for y, _, _ in seen} == {x for _, x, _ in seen} == set(range(5))


def test_augmentation_only_in_the_training_view_and_repeatable() -> None:
    data = ArrayData({"inputs": images(), "targets": torch.zeros(6)}, augment=CropFlip())
    order = fixed_order(6, 6)
    plain, first, again, other = (
        next(data.batches(order, device="cpu", generator=g))["inputs"]
        for g in (None, seed(0), seed(0), seed(1))
    )
    assert torch.equal(plain, images().float() / 255)
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, other)
    assert data.augmented
    assert not toy().augmented


def test_augmentation_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    CropFlip()(images(), seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_fingerprint_tells_contents_ids_and_augmentation_apart() -> None:
    inputs = images()
    base = ArrayData({"inputs": inputs, "targets": torch.arange(6)})
    changed = inputs.clone()
    changed[0, 0, 0, 0] ^= 1
    others = [
        ArrayData({"inputs": changed, "targets": torch.arange(6)}),
        ArrayData({"inputs": inputs, "targets": torch.arange(6).flip(0)}),
        ArrayData({"inputs": inputs, "labels": torch.arange(6)}),
        ArrayData({"inputs": inputs, "targets": torch.arange(6)}, augment=CropFlip()),
        base.subset([0, 1]),
        base.subset([1, 0]),
    ]
    prints = [data.fingerprint() for data in [base, *others]]
    assert len(set(prints)) == len(prints)
    assert len(prints[0]) == 64
    assert base.fingerprint() == ArrayData({"targets": torch.arange(6), "inputs": inputs}).fingerprint()
    assert base.to("cpu").fingerprint() == base.fingerprint()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([2, 9], r"ids hold 9, which is not in the data: the data set's ids are 0\.\.5"),
        ([-1], r"ids hold -1, which is not in the data"),
        ([4, 1, 4, 1], r"ids hold 4 more than once"),
        ([], r"ids are empty"),
        ([0.5], r"ids must be integers, got torch.float64 \(0.5"),
        (torch.tensor([True]), r"ids must be integers, got booleans. Turn a mask into ids"),
        (torch.tensor([[1]]), r"ids must be one-dimensional, got shape \(1, 1\)"),
        (["a"], r"ids must be a list of integers, got \['a'\]"),
    ],
)
def test_bad_ids(ids: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        toy().subset(ids)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_id_outside_a_subset() -> None:
    with pytest.raises(
        DataError, match=r"hold 2, which is not in the data: the data set holds 2 of the ids 1\.\.5"
    ):
        toy().subset([1, 5]).subset([2])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"inputs": torch.zeros(3), "targets": torch.zeros(2)}, "'targets' has 2 rows, but 'inputs' has 3"),
        ({"inputs": torch.zeros(0, 2)}, "'inputs' has no rows"),
        ({}, "no columns"),
        ({"ids": torch.arange(3)}, "'ids' is not a column"),
        ({"inputs": torch.tensor([[0.0, 1.0], [0.0, float("nan")]])}, "'inputs' holds NaN in row 1"),
        ({"targets": np.array([0.0, 1.0, np.inf])}, "'targets' holds an infinity in row 2"),
        ({"inputs": np.array(["a", "b"])}, "'inputs' is no array of numbers"),
        ({"inputs": torch.tensor(1.0)}, "'inputs' is a single number"),
        ({"inputs": torch.zeros(2, dtype=torch.complex64)}, "'inputs' is complex"),
    ],
)
def test_bad_columns(columns: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArrayData(columns)


def test_infinities_of_both_signs_are_found() -> None:
    with pytest.raises(DataError, match="row 1"):
        ArrayData({"inputs": torch.tensor([0.0, float("inf"), float("-inf")])})


def test_other_refusals() -> None:
    with pytest.raises(DataError, match="no column 'labels'. It has: inputs, targets"):
        toy().column("labels")
    with pytest.raises(DataError, match=r"augment needs image inputs of shape \(N, C, H, W\), got \(4, 2\)"):
        ArrayData({"inputs": torch.zeros(4, 2)}, augment=CropFlip())
    with pytest.raises(ConfigError, match="padding"):
        CropFlip(padding=-1)


def test_stream_respects_order_and_ids() -> None:
    data = StreamData(Pairs(5)).subset([4, 2, 0])
    (batch,) = data.batches([torch.tensor([1, 0])], device="cpu")
    assert batch["ids"].tolist() == [2, 4]
    assert batch["inputs"].tolist() == [[2.0], [4.0]]
    assert batch["targets"].dtype == torch.int64


def test_stream_with_workers_reads_the_same() -> None:
    order = random_order(12, 5, seed(0))
    here = list(StreamData(Pairs(12)).batches(order, device="cpu"))
    there = list(StreamData(Pairs(12), workers=1).batches(order, device="cpu"))
    for a, b in zip(here, there, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_stream_targets_come_from_the_data_set_or_one_pass() -> None:
    dataset = Pairs(5)
    assert StreamData(dataset).subset([3, 2]).column("targets").tolist() == [1, 0]
    assert dataset.reads == 2
    dataset.targets = [7, 8, 9, 10, 11]  # type: ignore[attr-defined]
    assert StreamData(dataset).subset([3, 2]).column("targets").tolist() == [10, 9]
    assert dataset.reads == 2
    dataset.target_transform = lambda y: y + 1  # type: ignore[attr-defined]
    assert StreamData(dataset).column("targets").tolist() == [0, 1, 0, 1, 0]
    with pytest.raises(DataError, match="no column 'labels'. It has: inputs, targets"):
        StreamData(dataset).column("labels")


def test_stream_augmentation_is_drawn_from_the_generator() -> None:
    data = StreamData(Noisy(4), plain=Pairs(4))
    order = fixed_order(4, 2)
    before = torch.get_rng_state()

    def read(generator: torch.Generator | None) -> Tensor:
        return torch.cat(
            [batch["inputs"] for batch in data.batches(order, device="cpu", generator=generator)]
        )

    assert read(None)[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert torch.equal(read(seed(1)), read(seed(1)))
    assert not torch.equal(read(seed(1)), read(seed(2)))
    assert torch.equal(before, torch.get_rng_state())
    assert data.augmented


def test_stream_reads_pictures_and_mappings() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    items = [
        {"inputs": image.fromarray(pixels), "targets": 1.5},
        {"inputs": image.fromarray(pixels), "targets": 2.5},
    ]
    (batch,) = StreamData(items).batches(fixed_order(2, 2), device="cpu")
    assert torch.equal(batch["inputs"][0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    assert batch["targets"].tolist() == [1.5, 2.5]
    grey = StreamData([(image.fromarray(pixels[..., 0]), 0)])
    assert grey.column("inputs").shape == (1, 1, 4, 5)


def test_stream_fingerprint() -> None:
    prints = [
        StreamData(Pairs(4)).fingerprint(),
        StreamData(Pairs(5)).fingerprint(),
        StreamData(Pairs(5)).subset([1, 0]).fingerprint(),
        StreamData(Noisy(5), plain=Pairs(5)).fingerprint(),
    ]
    assert len(set(prints)) == 4
    assert prints[0] == StreamData(Pairs(4)).fingerprint()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            [(torch.zeros(2), 0), (torch.zeros(3), 0)],
            r"'inputs' differs in shape between examples: \(2,\) and \(3,\)",
        ),
        ([torch.zeros(2)], "an item of the data set is Tensor; expected"),
        ([(torch.tensor([float("nan")]), 0)], "'inputs' holds NaN in row 0"),
        ([(object(), 0)], "'inputs' of an example is object"),
    ],
)
def test_stream_refuses_items(dataset: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        StreamData(dataset).column("inputs")


def test_stream_refuses_data_sets() -> None:
    with pytest.raises(DataError, match="cannot be addressed by id"):
        StreamData(iter([1, 2]))
    with pytest.raises(DataError, match="is empty"):
        StreamData([])
    with pytest.raises(DataError, match="plain has 3 examples, but the data set has 4"):
        StreamData(Pairs(4), plain=Pairs(3))
    with pytest.raises(ConfigError, match="workers"):
        StreamData(Pairs(4), workers=-1)


def test_a_last_batch_of_one_example_joins_the_one_before() -> None:
    for n, size, expected in [
        (9, 4, [4, 5]),
        (8, 4, [4, 4]),
        (10, 4, [4, 4, 2]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
    ]:
        order = random_order(n, size, torch.Generator().manual_seed(0))
        assert [len(batch) for batch in order] == expected
        assert batch_count(n, size) == len(expected)
        assert sorted(torch.cat(order).tolist()) == list(range(n))


def test_a_data_set_holds_its_own_subsets_alone() -> None:
    data, same = (ArrayData({"inputs": torch.zeros(4, 2)}) for _ in range(2))
    part = data.subset([1, 3])
    assert data.holds(part)
    assert part.holds(part.subset([3]))
    assert not part.holds(data)
    assert not part.holds(data.subset([1, 2]))
    assert not data.holds(same)
