"""Styles as functions of scenes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from expunge.data.scenes import OBJECTS, Scenes, draw_scenes
from expunge.data.styles import STYLES, _hsv, _ramp


def scenes(size: int = 32, count: int = 6) -> Scenes:
    draw = torch.Generator().manual_seed(0)
    drawn = [draw_scenes(name, count, size, jitter=0.3, hues=6, generator=draw) for name in OBJECTS]
    return Scenes.joined(drawn)


def test_hues_by_hand() -> None:
    """Red, green, blue and orange, from full to grey, and dark."""
    value = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5]).view(5, 1, 1)
    hue = torch.tensor([0, 1 / 3, 2 / 3, 1 / 12, 1.0])
    full = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0.5, 0], [0.5, 0, 0]]
    assert torch.allclose(_hsv(hue, 1.0, value).flatten(1), torch.tensor(full).float(), atol=1e-6)
    assert torch.allclose(_hsv(hue, 0.0, value).flatten(1), value.view(5, 1).expand(5, 3))


def test_a_ramp_by_hand() -> None:
    knots = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)]
    found = _ramp(torch.tensor([-1, 0.25, 0.5, 0.75, 1.0]).view(1, 1, 5), knots)[0, :, 0].T
    assert torch.allclose(found, torch.tensor([[0, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 0.5, 0], [1, 1, 0]]))


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("size", [8, 16, 32])
def test_images_are_in_range_and_depend_on_nothing_but_the_scene(name: str, size: int) -> None:
    before = torch.get_rng_state()
    drawn = scenes(size, 2)
    images = STYLES[name](drawn)
    assert images.shape == (20, 3, size, size)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    some = torch.tensor([7, 3])
    assert torch.allclose(STYLES[name](drawn.rows(some)), images[some], atol=1e-6), "not on its neighbours"
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", STYLES)
def test_the_object_shows_and_the_ground_far_from_it_does_not_change(name: str) -> None:
    drawn = scenes()
    images, twins = STYLES[name](drawn), STYLES[name](drawn.without_object())
    change = (images - twins).abs().amax(1)
    assert change[drawn.distance.abs() < 0.02].mean() > 0.1
    assert change[drawn.distance > 0.3].max() < 0.02


def accuracy(features: Tensor, labels: Tensor, train: Tensor, penalty: float) -> float:
    """Of ridge regression onto one-hot labels, on what it was not fitted to."""
    features = features.double()
    features = (features - features[train].mean(0)) / features.std()
    features = torch.cat([features, torch.ones(len(features), 1)], 1)
    seen, targets = features[train], torch.nn.functional.one_hot(labels).double()[train]
    gram = seen.T @ seen + penalty * len(seen) * torch.eye(features.shape[1])
    right = (features @ torch.linalg.solve(gram, seen.T @ targets)).argmax(1) == labels
    return float(right[~train].double().mean())


@pytest.mark.parametrize("size", [16, 32])
def test_styles_and_objects_can_be_told_apart(size: int) -> None:
    """A linear judge of held-out scenes, after 40 of each object: it sees all ten in every style.

    Objects from the pixels' difference to the first one; measured in the worst style (mosaic) 0.75 at 16
    pixels, in the worst (photo) 0.77 at 32; chance is 0.1. Styles from statistics of colours and edges: 1.00.
    """
    count = 60
    drawn = scenes(size, count)
    train = torch.arange(len(drawn)) % count < 40
    features, objects = [], torch.arange(len(OBJECTS)).repeat_interleave(count)
    for draw in STYLES.values():
        images = draw(drawn)
        edges = torch.stack([images.diff(dim=d).abs().mean((1, 2, 3)) for d in (2, 3)], 1)
        features.append(torch.cat([images.mean((2, 3)), images.std((2, 3)), images.amin((2, 3)), edges], 1))
        grey = torch.nn.functional.adaptive_avg_pool2d((images - images[:, :, :1, :1]).abs().mean(1), 16)
        assert accuracy(grey.flatten(1), objects, train, 0.02) > 0.65
    found = torch.cat(features)
    found = (found - found.mean(0)) / found.std(0)
    found = torch.cat([found, (found[:, :, None] * found[:, None]).flatten(1)], 1)
    styles = torch.arange(len(STYLES)).repeat_interleave(len(drawn))
    assert accuracy(found, styles, train.repeat(len(STYLES)), 0.001) > 0.98
