"""Styles: ways to draw scenes, each a function of nothing but the scene."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from expunge.data.scenes import Scenes

Style = Callable[[Scenes], Tensor]
"""Scenes to images ``(N, 3, S, S)`` in [0, 1]."""


def photo(scenes: Scenes) -> Tensor:
    """A bright object lit from one side, before a dark ground of the opposite hue."""
    x, y = _grid(scenes)
    lit = 0.5 + 0.7 * (x * scenes.light.cos()[:, None, None] + y * scenes.light.sin()[:, None, None])
    front = _hsv(scenes.hue, 0.85, 0.75 + 0.25 * lit)
    back = _hsv(scenes.hue + 0.5, 0.55, 0.28 + 0.16 * lit)
    return _over(scenes.mask(), front, back)


def sketch(scenes: Scenes) -> Tensor:
    """Grey pencil on white paper: the outline, and a light shade inside."""
    line = _line(scenes, 0.035)
    grain = _wave(scenes, 1, 1, 0.3)
    dark = torch.maximum(0.85 * line, scenes.mask() * (0.12 + 0.1 * grain))
    return _grey(0.97 - dark)


def neon(scenes: Scenes) -> Tensor:
    """A glowing outline in the dark, white at its core."""
    away = scenes.distance.abs()
    glow = torch.exp(-away / 0.07)[:, None]
    core = torch.exp(-((away / 0.025) ** 2))[:, None]
    colour = _hsv(scenes.hue, 1.0, torch.ones_like(away))
    return (0.03 + glow * colour + 0.7 * core).clamp(0, 1)


def mosaic(scenes: Scenes) -> Tensor:
    """Flat tiles, cut at the object's edge, every other one darker, with light joints where there is room."""
    tile = max(2, scenes.size // 8)
    inside = (scenes.distance < 0).float()
    ones = torch.ones_like(inside)
    colours = _over(inside, _hsv(scenes.hue, 0.75, 0.95 * ones), _hsv(scenes.hue + 0.5, 0.65, 0.5 * ones))
    pixel = torch.arange(scenes.size)
    row = pixel // tile
    tiles = colours * (1 - 0.3 * ((row[:, None] + row) % 2))
    if tile < 4:
        return tiles
    joint = pixel % tile == 0
    return tiles + 0.55 * (joint[:, None] | joint) * (0.9 - tiles)


def hatch(scenes: Scenes) -> Tensor:
    """Brown ink on cream paper: close diagonal lines inside, wide ones of the other slope outside."""
    period = 1 / 8
    inside, outside = _stripes(scenes, 1, period), _stripes(scenes, -1, 2 * period)
    ink = torch.where(scenes.mask() > 0.5, 0.12 + 0.5 * inside, 0.2 * outside)
    ink = torch.maximum(ink, 0.95 * _line(scenes, 0.02, 0.4))
    return _mix(ink, (0.35, 0.16, 0.05), (0.98, 0.92, 0.74))


def pointillism(scenes: Scenes) -> Tensor:
    """Dots of pure colour on white: large and saturated on the object, small and pale on the ground."""
    step = max(2, round(scenes.size / 10))
    pixel = torch.arange(scenes.size)
    x, y = pixel[None, :].expand(scenes.size, -1), pixel[:, None]
    x = x + (y // step % 2) * (step // 2)
    across, down = x % step - (step - 1) // 2, (y % step - (step - 1) // 2).expand_as(x)
    mask = scenes.mask()
    radius = 0.28 * step + 0.5 * mask
    dots = (radius - torch.hypot(across.float(), down.float()) + 0.5).clamp(0, 1)[:, None]
    ones = torch.ones_like(mask)
    colour = _over(mask, _hsv(scenes.hue, 1.0, 0.95 * ones), _hsv(scenes.hue + 0.5, 0.45, 0.85 * ones))
    return 1 + dots * (colour - 1)


def invert(scenes: Scenes) -> Tensor:
    """The photo's negative: a dark object before a light ground."""
    return 1 - photo(scenes)


def watercolor(scenes: Scenes) -> Tensor:
    """Thin paint on white paper: pale and blotchy, running at the edges, darker along them."""
    wash = 0.12 * _wave(scenes, 2, 1, 1.3) + 0.12 * _wave(scenes, -1, 2, 2.1)
    soft = torch.sigmoid(-(scenes.distance + 0.02 * _wave(scenes, 4, 3, 0.4)) / 0.025)
    rim = torch.exp(-((scenes.distance / 0.03) ** 2))
    paint = (soft * (0.55 + wash) + 0.3 * rim).clamp(0, 1)[:, None]
    ones = torch.ones_like(soft)
    front = 1 - paint * (1 - _hsv(scenes.hue, 0.75, 0.9 * ones))
    ground = 1 - (0.14 + 0.5 * wash.clamp(min=0))[:, None] * (1 - _hsv(scenes.hue + 0.5, 0.8, ones))
    return front * (1 - (1 - soft[:, None]) * (1 - ground))


def blueprint(scenes: Scenes) -> Tensor:
    """White outlines on blue paper with a grid."""
    spacing = max(4, scenes.size // 4)
    pixel = torch.arange(scenes.size)
    ruled = (pixel % spacing == spacing // 2).float()
    grid = 0.28 * torch.maximum(ruled[:, None], ruled).expand_as(scenes.distance)
    white = torch.maximum(torch.maximum(grid, 0.2 * scenes.mask()), _line(scenes, 0.03))
    return _mix(white, (0.95, 0.97, 1.0), (0.08, 0.25, 0.62))


def thermal(scenes: Scenes) -> Tensor:
    """Heat: the object glows from its edge inwards, from red over yellow to white, on cold violet."""
    depth = (-scenes.distance / 0.16).clamp(0, 1)
    ambient = 0.1 + 0.06 * _wave(scenes, 1, 1, 0.7)
    heat = torch.where(
        scenes.mask() > 0.5, 0.5 + 0.5 * depth, ambient + 0.3 * torch.exp(-scenes.distance / 0.06)
    )
    knots = [(0.05, 0.0, 0.2), (0.45, 0.0, 0.55), (0.9, 0.15, 0.2), (1.0, 0.75, 0.05), (1.0, 1.0, 0.85)]
    return _ramp(heat, knots)


STYLES: dict[str, Style] = {
    "photo": photo,
    "sketch": sketch,
    "neon": neon,
    "mosaic": mosaic,
    "hatch": hatch,
    "pointillism": pointillism,
    "invert": invert,
    "watercolor": watercolor,
    "blueprint": blueprint,
    "thermal": thermal,
}
"""The styles, by name."""


def _grid(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixels in [−½, ½], ``x`` to the right and ``y`` upwards, ``(1, S, S)``."""
    steps = (torch.arange(scenes.size) + 0.5) / scenes.size - 0.5
    return steps.expand(1, scenes.size, -1), -steps[:, None].expand(1, -1, scenes.size)


def _wave(scenes: Scenes, across: int, up: int, shift: float) -> Tensor:
    """A sine in [−1, 1] with whole periods along both sides, shifted by the scene's phase, ``(N, S, S)``."""
    x, y = _grid(scenes)
    phase = scenes.phase.sum(1)[:, None, None] + shift
    return torch.sin(2 * math.pi * (across * x + up * y + phase))


def _stripes(scenes: Scenes, slope: int, period: float) -> Tensor:
    """Diagonal lines, a third of their period wide, 0 or 1, ``(1, S, S)``."""
    x, y = _grid(scenes)
    pixels = max(3, round(period * scenes.size))
    steps = torch.round((x + slope * y) * scenes.size + scenes.size).long()
    return (steps % pixels == 0).float()


def _line(scenes: Scenes, width: float, least: float = 0.75) -> Tensor:
    """The outline, ``width`` sides of the image to both sides of the edge, at least ``least`` pixels."""
    half = max(width * scenes.size, least)
    return (half + 0.5 - scenes.distance.abs() * scenes.size).clamp(0, 1)


def _over(mask: Tensor, front: Tensor, back: Tensor) -> Tensor:
    return back + mask[:, None] * (front - back)


def _grey(values: Tensor) -> Tensor:
    return values[:, None].expand(-1, 3, -1, -1).clamp(0, 1).contiguous()


def _mix(share: Tensor, front: Sequence[float], back: Sequence[float]) -> Tensor:
    """Two colours, ``share`` of the first."""
    first, second = (torch.tensor(colour)[:, None, None] for colour in (front, back))
    return second + share[:, None] * (first - second)


def _ramp(values: Tensor, knots: Sequence[tuple[float, float, float]]) -> Tensor:
    """Colours between equally spaced knots, for values in [0, 1]."""
    table = torch.tensor(knots)
    place = values.clamp(0, 1) * (len(knots) - 1)
    lower = place.long().clamp(max=len(knots) - 2)
    between = (place - lower)[..., None]
    return (table[lower] + between * (table[lower + 1] - table[lower])).permute(0, 3, 1, 2).contiguous()


def _hsv(hue: Tensor, saturation: float, value: Tensor) -> Tensor:
    """``(N,)`` hues in turns and ``(N, S, S)`` values to colours ``(N, 3, S, S)``."""
    sector = 6 * hue[:, None] + torch.tensor([5.0, 3.0, 1.0])
    pure = 1 - saturation * torch.minimum(sector % 6, 4 - sector % 6).clamp(0, 1)
    return (pure[:, :, None, None] * value[:, None]).clamp(0, 1)
