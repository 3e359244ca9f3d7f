"""Manipulated training data: every fault is real, counted, and its clean labels are kept."""

import pytest
import torch

from expunge import config
from expunge.data import ArrayData, CropFlip, Sourced, sources
from expunge.data.poison import Backdoor, Examples, InterclassConfusion, Patch, RandomLabelSwap
from expunge.data.source import DataSource
from expunge.errors import ConfigError, DataError
from expunge.tasks import Classification
from expunge.training.models import models
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session


def examples(n: int = 60, classes: int = 6) -> Examples:
    draw = torch.Generator().manual_seed(0)
    return Examples(torch.rand(n, 1, 5, 5, generator=draw) * 0.9, torch.arange(n) % classes, classes)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def poisoned(manipulation: dict[str, object], source: object = "digits", seed: int = 0) -> Sourced:
    described = {"kind": "poisoned", "source": source, "manipulation": manipulation, "seed": seed}
    return config.build(sources, described).load()


def test_both_halves_of_an_exchange_are_real() -> None:
    clean = examples()
    found, rows = InterclassConfusion(classes=(1, 4), count=8).apply(clean, draw())
    before, after = clean.targets[rows].tolist(), found.targets[rows].tolist()
    assert sorted(zip(before, after, strict=True)) == [(1, 4)] * 4 + [(4, 1)] * 4
    assert clean.targets.tolist() == [i % 6 for i in range(60)]  # the clean labels are no alias
    rest = torch.ones(60, dtype=torch.bool)
    rest[rows] = False
    assert torch.equal(found.targets[rest], clean.targets[rest])
    assert torch.equal(found.inputs, clean.inputs)


def test_an_exchange_through_an_alias_would_be_seen() -> None:
    """The published analysis exchanges in place, so its second step takes up what the first one wrote."""
    clean = examples()
    _, rows = InterclassConfusion(classes=(1, 4), count=8).apply(clean, draw())
    labels = clean.targets[rows].clone()
    labels[labels == 1] = 4
    labels[labels == 4] = 1
    assert labels.unique().tolist() == [1]  # both exchanges collapse to one class


@pytest.mark.parametrize(
    ("corner", "rows", "columns"),
    [
        ("bottom_right", [3, 4], [3, 4]),
        ("bottom_left", [3, 4], [0, 1]),
        ("top_right", [0, 1], [3, 4]),
        ("top_left", [0, 1], [0, 1]),
    ],
)
def test_a_patch_sets_its_pixels_and_no_others(corner: str, rows: list[int], columns: list[int]) -> None:
    images = torch.zeros(2, 3, 5, 5, dtype=torch.uint8)
    patched = Patch(size=2, corner=corner).on(images, 255)
    assert not images.any()
    assert patched.dtype == torch.uint8
    places = (patched[1, 2] == 255).nonzero().tolist()
    assert places == [[r, c] for r in rows for c in columns]
    assert int((patched > 0).sum()) == 2 * 3 * 4


def test_a_backdoor_has_the_patch_the_label_and_no_image_of_its_own_class() -> None:
    clean = examples()
    found, rows = Backdoor(label=2, count=10, patch=Patch(size=2)).apply(clean, draw())
    assert len(rows) == 10
    assert (found.targets[rows] == 2).all()
    assert (clean.targets[rows] != 2).all()
    assert (found.inputs[rows][:, :, -2:, -2:] == clean.inputs.max()).all()
    assert torch.equal(found.inputs[rows][:, :, :-2], clean.inputs[rows][:, :, :-2])
    changed = (found.inputs != clean.inputs).flatten(1).any(1).nonzero()[:, 0]
    assert torch.equal(changed, rows.sort().values)


def test_every_swapped_label_changes_to_any_of_the_others() -> None:
    clean = Examples(torch.zeros(6000, 1), torch.arange(6000) % 4, 4)
    found, rows = RandomLabelSwap(count=6000).apply(clean, draw())
    assert (found.targets != clean.targets)[rows].all()
    steps = ((found.targets - clean.targets) % 4).bincount(minlength=4)
    assert steps[0] == 0
    assert (steps[1:] - 2000).abs().max() < 150  # four standard deviations: √(6000 · 2/9) = 37


def test_a_permutation_of_the_chosen_labels_would_leave_some_in_place() -> None:
    """The benchmark's random swap, for comparison: labels exchanged among the chosen examples."""
    labels = torch.arange(6000) % 4
    kept = (labels[torch.randperm(6000, generator=draw())] == labels).double().mean()
    assert kept == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("kind", ["interclass_confusion", "backdoor", "random_label_swap"])
def test_a_poisoned_source_knows_what_is_wrong(kind: str) -> None:
    clean = config.build(sources, "digits").load()
    found = poisoned({"kind": kind, "count": 40})
    targets, kept = found.train.column("targets"), found.train.column("clean_targets")
    marked = found.train.column("manipulated") == 1
    assert torch.equal(kept, clean.train.column("targets"))
    assert torch.equal(targets != kept, marked)
    assert int(marked.sum()) == 40
    assert torch.equal(found.test.column("inputs"), clean.test.column("inputs"))
    assert torch.equal(found.test.column("clean_targets"), found.test.column("targets"))
    affected = {"interclass_confusion": 36 + 37, "backdoor": 0, "random_label_swap": 359}[kind]
    assert abs(int(found.test.column("affected").sum()) - affected) <= 1
    assert found.classes == 10
    assert found.image_shape == (1, 8, 8)
    assert found.train.fingerprint() == poisoned({"kind": kind, "count": 40}).train.fingerprint()
    assert found.train.fingerprint() != poisoned({"kind": kind, "count": 40}, seed=1).train.fingerprint()


def test_the_configuration_comes_back() -> None:
    patch = {"size": 2, "corner": "top_left"}
    described = {
        "kind": "poisoned",
        "source": {"kind": "digits", "seed": 3},
        "manipulation": {"kind": "backdoor", "label": 4, "patch": patch},
    }
    source = config.build(sources, described)
    assert config.build(sources, config.dump(source)) == source
    assert config.dump(source)["manipulation"]["patch"] == patch


class Held(DataSource):
    """Data handed over as it is."""

    def __init__(self, train: ArrayData) -> None:
        self.train = train

    def load(self) -> Sourced:
        return Sourced(self.train, self.train, classes=6)


def test_augmentation_bytes_and_further_columns_are_kept() -> None:
    from expunge.data.poison import Poisoned

    images = torch.randint(200, (60, 3, 6, 6), dtype=torch.uint8, generator=draw())
    columns = {"inputs": images, "targets": torch.arange(60) % 6, "subjects": torch.arange(60) // 2}
    train = ArrayData(columns, augment=CropFlip(padding=1), class_names=list("abcdef"))
    found = Poisoned(source=Held(train), manipulation=Backdoor(count=5)).load()
    assert found.train.augmented
    assert not found.test.augmented
    assert found.train.column("inputs").dtype == torch.uint8
    assert torch.equal(found.train.column("subjects"), columns["subjects"])


def test_training_sees_none_of_the_further_columns() -> None:
    """The same weights with the columns and without them."""
    found = poisoned({"kind": "random_label_swap", "count": 20}, {"kind": "blobs", "size": 80})
    plain = ArrayData({name: found.train.column(name) for name in ("inputs", "targets")})
    model = config.build(models, {"kind": "mlp", "inputs": 2, "outputs": 4, "hidden": [4]})
    recipe = Recipe(model, Classification(4), Training(epochs=2))
    first, second = (recipe.train(data, Session(0)).state_dict() for data in (found.train, plain))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("manipulation", "source", "said"),
    [
        (
            {"kind": "interclass_confusion", "count": 2000},
            "digits",
            r"1000 examples of class 3 .* there are 1",
        ),
        ({"kind": "interclass_confusion", "classes": [3, 40]}, "digits", "of class 40 .* there are 0"),
        ({"kind": "backdoor", "label": 10}, "digits", r"no class 10: the labels are 0\.\.9"),
        ({"kind": "backdoor"}, {"kind": "blobs"}, r"images of shape \(N, C, H, W\), got \(100, 2\)"),
        ({"kind": "backdoor", "patch": {"size": 8}}, "digits", "patch of 8 pixels does not fit"),
        ({"kind": "backdoor"}, "linear", "integer labels"),
        ({"kind": "backdoor"}, "tokens", "needs the columns inputs and targets"),
        (
            {"kind": "random_label_swap"},
            {"kind": "poisoned", "source": "digits", "manipulation": "backdoor"},
            "poisoned already",
        ),
    ],
)
def test_data_that_cannot_have_the_fault_is_refused(manipulation, source, said) -> None:
    with pytest.raises(DataError, match=said):
        poisoned(manipulation, source)


@pytest.mark.parametrize(
    ("manipulation", "said"),
    [
        ({"kind": "interclass_confusion", "count": 7}, "manipulation.count: is even"),
        ({"kind": "interclass_confusion", "classes": [2, 2]}, "two different classes"),
        ({"kind": "backdoor", "count": 0}, "manipulation.count"),
        ({"kind": "backdoor", "patch": {"size": 0}}, "manipulation.patch.size"),
        ({"kind": "random_label_swap", "count": 0}, "manipulation.count"),
        ("bakdoor", "Did you mean 'backdoor'"),
    ],
)
def test_mistakes_in_the_configuration_have_their_place(manipulation, said) -> None:
    with pytest.raises(ConfigError, match=said):
        poisoned(manipulation)
