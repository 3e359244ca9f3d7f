"""Scenes: one object before a plain ground, as signed distances from which every style draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Points = tuple[Tensor, Tensor]
"""Coordinates ``x`` to the right and ``y`` upwards, of equal shape; an object fills about the unit disc."""

AWAY = 4.0
"""Signed distance to an object that is not there, in sides of the image."""


@dataclass(frozen=True)
class Scenes:
    """``N`` scenes on ``S`` × ``S`` pixels.

    Attributes:
        distance: to the object's edge in sides of the image, negative inside, ``(N, S, S)``.
        hue: of the object in [0, 1), ``(N,)``; the ground has the opposite hue.
        light: angle that light comes from, in radians, ``(N,)``.
        phase: where the textures begin, in [0, 1), ``(N, 2)``.
    """

    distance: Tensor
    hue: Tensor
    light: Tensor
    phase: Tensor

    @classmethod
    def joined(cls, several: Sequence[Scenes]) -> Scenes:
        """All scenes of several, in order."""
        names = ("distance", "hue", "light", "phase")
        return cls(*(torch.cat([getattr(scenes, name) for scenes in several]) for name in names))

    def __len__(self) -> int:
        return len(self.distance)

    @property
    def size(self) -> int:
        """``S``."""
        return self.distance.shape[-1]

    def mask(self) -> Tensor:
        """Share of each pixel that the object covers, ``(N, S, S)`` in [0, 1]."""
        return (0.5 - self.distance * self.size).clamp(0, 1)

    def without_object(self) -> Scenes:
        """The same scenes with nothing in them but their ground."""
        return replace(self, distance=torch.full_like(self.distance, AWAY))

    def rows(self, chosen: Tensor) -> Scenes:
        """Some of the scenes, in this order."""
        return Scenes(self.distance[chosen], self.hue[chosen], self.light[chosen], self.phase[chosen])


def draw_scenes(
    name: str, count: int, size: int, *, jitter: float, hues: int, generator: torch.Generator
) -> Scenes:
    """Random scenes with one object.

    The centre lies within ``± jitter / 4`` of the middle in both directions, the object is turned by up to
    ``± 60° · jitter`` and its radius is ``0.32 (1 ± jitter / 2)``, in sides of the image; all uniform.

    Args:
        name: of the object, one of ``OBJECTS``.
        jitter: 0 for the same pose always.
        hues: number of equally spaced colours to draw from.
    """
    u = torch.rand(count, 7, generator=generator)
    signed = 2 * u - 1
    centre = 0.5 + signed[:, :2] * jitter / 4
    angle = signed[:, 2] * jitter * math.pi / 3
    radius = 0.32 * (1 + signed[:, 3] * jitter / 2)
    hue = torch.randint(hues, (count,), generator=generator) / hues
    steps = (torch.arange(size) + 0.5) / size
    x = (steps[None, None, :] - centre[:, 0, None, None]).expand(count, size, size)
    y = (centre[:, 1, None, None] - steps[None, :, None]).expand(count, size, size)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    scale = radius[:, None, None]
    turned = (cos * x + sin * y) / scale, (cos * y - sin * x) / scale
    return Scenes(OBJECTS[name](turned) * scale, hue, 2 * math.pi * u[:, 4], u[:, 5:])


def polygon(points: Points, corners: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a simple polygon: the nearest edge's, negative where a ray crosses edges oddly."""
    x, y = points
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ey:
            inside ^= ((y >= ay) != (y >= by)) & (x < ax + (y - ay) * ex / ey)
    return torch.where(inside, -nearest.sqrt(), nearest.sqrt())


def disc(points: Points, x: float = 0.0, y: float = 0.0, radius: float = 0.9) -> Tensor:
    """Signed distance to a disc."""
    return torch.hypot(points[0] - x, points[1] - y) - radius


def _fan(count: int, *radii: float) -> list[tuple[float, float]]:
    """``count`` corners around the origin, the first one upwards, at these distances in turn."""
    angles = [math.pi / 2 + 2 * math.pi * k / count for k in range(count)]
    return [
        (radii[k % len(radii)] * math.cos(a), radii[k % len(radii)] * math.sin(a))
        for k, a in enumerate(angles)
    ]


def _square(points: Points) -> Tensor:
    return polygon(points, [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)])


def _triangle(points: Points) -> Tensor:
    return polygon(points, [(x, y - 0.1) for x, y in _fan(3, 1.05)])


def _star(points: Points) -> Tensor:
    return polygon(points, _fan(10, 1.1, 0.45))


def _cross(points: Points) -> Tensor:
    a, b = 0.3, 0.95
    corners = [(a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a), (-a, -b), (a, -b), (a, -a)]
    return polygon(points, [*corners, (b, -a), (b, a)])


def _ring(points: Points) -> Tensor:
    return disc(points, radius=0.7).abs() - 0.22


def _heart(points: Points) -> Tensor:
    """A square on its corner and two discs on the middles of its upper edges."""
    corner = 0.7
    square = polygon(points, [(0, -corner - 0.2), (corner, -0.2), (0, corner - 0.2), (-corner, -0.2)])
    lobes = [disc(points, side * corner / 2, corner / 2 - 0.2, corner / math.sqrt(2)) for side in (-1, 1)]
    return torch.minimum(square, torch.minimum(*lobes))


def _moon(points: Points) -> Tensor:
    return torch.maximum(disc(points, radius=0.95), -disc(points, 0.45, 0.1, 0.72))


def _arrow(points: Points) -> Tensor:
    head, neck, shaft = 0.8, 0.05, 0.24
    corners = [(0.0, 1.0), (-head, neck), (-shaft, neck), (-shaft, -1.0), (shaft, -1.0), (shaft, neck)]
    return polygon(points, [*corners, (head, neck)])


def _diamond(points: Points) -> Tensor:
    return polygon(points, [(0.0, 1.05), (-0.6, 0.0), (0.0, -1.05), (0.6, 0.0)])


OBJECTS: dict[str, Callable[[Points], Tensor]] = {
    "circle": disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
    "arrow": _arrow,
    "diamond": _diamond,
}
"""Signed distance functions of the objects, by name."""
