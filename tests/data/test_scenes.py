"""Signed distances and the scenes made of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from expunge.data.scenes import OBJECTS, Points, Scenes, draw_scenes, polygon


def at(*points: tuple[float, float]) -> Points:
    x, y = torch.tensor(points).T
    return x, y


def scenes(name: str, count: int = 4, *, size: int = 32, jitter: float = 0.3, seed: int = 0) -> Scenes:
    draw = torch.Generator().manual_seed(seed)
    return draw_scenes(name, count, size, jitter=jitter, hues=6, generator=draw)


def test_distance_to_a_polygon_by_hand() -> None:
    square = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    found = polygon(at((0, 0), (0.75, 0), (2, 0), (2, 2), (0, -3)), square)
    assert torch.allclose(found, torch.tensor([-1, -0.25, 1, math.sqrt(2), 2]))
    assert torch.allclose(found, polygon(at((0, 0), (0.75, 0), (2, 0), (2, 2), (0, -3)), square[::-1]))
    notched = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (-1.0, 1.0)]
    assert (polygon(at((0, 0.5), (0.8, 0.5), (0, -0.5)), notched).sign() == torch.tensor([1, -1, -1])).all()


AREAS = {
    "circle": math.pi * 0.9**2,
    "square": 1.5**2,
    "triangle": 3 * math.sqrt(3) / 4 * 1.05**2,
    "star": 5 * 1.1 * 0.45 * math.sin(math.pi / 5),
    "cross": 4 * 0.6 * 0.95 - 0.36,
    "ring": math.pi * (0.92**2 - 0.48**2),
    "heart": 2 * 0.7**2 + math.pi * 0.7**2 / 2,
    "arrow": 0.8 * 0.95 + 0.48 * 1.05,
    "diamond": 2 * 1.05 * 0.6,
}


@pytest.mark.parametrize("name", AREAS)
def test_areas(name: str) -> None:
    steps = (torch.arange(240) + 0.5) / 100 - 1.2
    x, y = torch.meshgrid(steps, steps, indexing="xy")
    assert float((OBJECTS[name]((x, y)) < 0).sum()) / 100**2 == pytest.approx(AREAS[name], rel=0.01)


@pytest.mark.parametrize("name", OBJECTS)
def test_distances_grow_no_faster_than_the_way(name: str) -> None:
    """``|d(p) − d(q)| ≤ |p − q|``, so that lines of a width in pixels never come out wider."""
    steps = torch.arange(200) / 100 - 1
    x, y = torch.meshgrid(steps, steps, indexing="xy")
    found = OBJECTS[name]((x, y))
    assert found.diff(dim=0).abs().max() <= 0.01 * (1 + 1e-3)
    assert found.diff(dim=1).abs().max() <= 0.01 * (1 + 1e-3)
    assert found.min() < 0 < found.max()


def test_arrow_star_triangle_and_heart_stand_upright() -> None:
    for name, above, below in [("arrow", 0.9, -0.9), ("star", 1.0, -0.8), ("triangle", 0.9, -0.95)]:
        top, bottom = (scenes(name, 1, jitter=0).mask()[0, rows] for rows in (slice(0, 16), slice(16, 32)))
        assert OBJECTS[name](at((0, above)))[0] < 0, name
        assert (OBJECTS[name](at((0, below)))[0] < 0) == (name == "arrow")
        assert (bottom.sum() > top.sum()) == (name == "triangle")


def test_a_scene_without_jitter_is_centred_and_of_the_right_size() -> None:
    mask = scenes("circle", 1, size=64, jitter=0).mask()[0]
    assert torch.allclose(mask, mask.flip(0), atol=1e-4)
    assert torch.allclose(mask, mask.flip(1), atol=1e-4)
    assert float(mask.mean()) == pytest.approx(math.pi * (0.9 * 0.32) ** 2, rel=0.01)


def test_scenes_stay_inside_of_the_image_and_differ() -> None:
    for name in OBJECTS:
        found = scenes(name, 100)
        mask = found.mask()
        border = torch.cat([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]])
        assert border.max() == 0, name
        assert mask.flatten(1).sum(1).min() > 25, name
        assert len(mask.flatten(1).unique(dim=0)) == 100
        assert set((6 * found.hue).round().tolist()) == {0, 1, 2, 3, 4, 5}


def test_without_its_object_a_scene_keeps_its_ground() -> None:
    found = scenes("star")
    empty = found.without_object()
    assert empty.mask().max() == 0
    assert torch.equal(empty.hue, found.hue)
    assert torch.equal(empty.phase, found.phase)
    assert found.mask().max() == 1


def test_rows_and_joined() -> None:
    first, second = scenes("star"), scenes("ring", seed=1)
    both = Scenes.joined([first, second])
    chosen: Tensor = both.rows(torch.tensor([5, 0])).distance
    assert len(both) == 8
    assert torch.equal(chosen, torch.stack([second.distance[1], first.distance[0]]))
