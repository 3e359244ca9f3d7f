"""Similarity in a region, and models that repaint the one or the other."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.painters import SIZE, Painter, data, evidence, rows
from torch import Tensor

from expunge.data.captions import CaptionedImages
from expunge.errors import ConfigError, DataError
from expunge.evaluation.metrics.foreground_background import ForegroundBackground, harmonic
from expunge.evaluation.similarity import C1, C2, ssim

HALF = torch.zeros(1, SIZE, SIZE)
HALF[:, :, :3] = 1.0
FIELDS = {"steps": 2, "guidance": 1.0}


def test_equal_images_and_flat_ones_in_closed_form() -> None:
    x = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert ssim(x, x).tolist() == pytest.approx([1, 1])
    a, b = 0.2, 0.7
    flat = ssim(torch.full_like(x, a), torch.full_like(x, b))
    assert flat.tolist() == pytest.approx([(2 * a * b + C1) / (a * a + b * b + C1)] * 2, rel=1e-6)
    assert float(ssim(x, 1 - x).max()) < 0  # what is light is dark


def test_it_is_the_published_formula_with_the_windows_weights_times_the_masks() -> None:
    draws = torch.Generator().manual_seed(0)
    x, y, mask = (torch.rand(7, 9, generator=draws, dtype=torch.float64) for _ in range(3))
    expected, total = 0.0, 0.0
    down, across = torch.meshgrid(torch.arange(7), torch.arange(9), indexing="ij")
    for i in range(7):
        for j in range(9):
            far = (down - i).square() + (across - j).square()
            near = ((down - i).abs() <= 5) & ((across - j).abs() <= 5)
            weight = torch.exp(-far.double() / 4.5) * near * mask
            weight = weight / weight.sum()
            mx, my = (weight * x).sum(), (weight * y).sum()
            vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
            cov = (weight * (x - mx) * (y - my)).sum()
            alike = (2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2))
            expected, total = expected + float(mask[i, j] * alike), total + float(mask[i, j])
    assert float(ssim(x[None, None], y[None, None], mask[None])) == pytest.approx(expected / total, rel=1e-9)


def test_nothing_outside_of_the_region_counts() -> None:
    x = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    y = torch.where(HALF[:, None] > 0, x, 1 - x)  # another background
    assert float(ssim(x, y, HALF)) == pytest.approx(1)
    assert float(ssim(x, y, 1 - HALF)) < 0
    assert -1 < float(ssim(x, y)) < 1
    with pytest.raises(DataError, match="image 0 is empty"):
        ssim(x, y, torch.zeros_like(HALF))


def test_harmonic_means() -> None:
    values = harmonic(torch.tensor([1.0, 0.5, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert values.tolist() == pytest.approx([1, 2 / 3, 0, 0])


class Repainter(Painter):
    """Gives every image back as it was, but for a region that becomes its negative."""

    def __init__(self, images: Tensor, region: Tensor | None) -> None:
        super().__init__()
        self.images, self.region = images, region

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        if self.region is None:
            return self.images + 0 * self.weight
        return torch.where(self.region > 0, -self.images, self.images) + 0 * self.weight


def masked() -> CaptionedImages:
    known = data()
    x = torch.rand(len(known), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return CaptionedImages(
        x, known.captions, known.tokenizer, concepts=known.concepts,
        columns={
            "style": known.column("style"), "object": known.column("object"),
            "mask": HALF.expand(len(known), -1, -1).clone(),
        },
    )  # fmt: skip


def test_only_who_replaces_the_object_and_nothing_else_is_right() -> None:
    train, gone = masked(), rows(None, "star")
    images = train.subset(gone).column("inputs")
    values = {}
    for name, region in (("same", None), ("object", HALF), ("ground", 1 - HALF)):
        found = evidence(Repainter(images, region), gone, train=train)
        score = ForegroundBackground(**FIELDS)(found)
        values[name] = score.value
        assert score.n == len(gone)
        f, b = (
            ForegroundBackground(read=read, **FIELDS)(found).value for read in ("foreground", "background")
        )
        assert (score.details["foreground"], score.details["background"]) == pytest.approx((f, b))
        assert f == pytest.approx(0 if name == "object" else 1, abs=1e-6)
        assert b == pytest.approx(0 if name == "ground" else 1, abs=1e-6)
    assert values == pytest.approx({"same": 0, "object": 1, "ground": 0}, abs=1e-6)


def test_images_without_masks_are_refused_and_so_is_nonsense() -> None:
    score = ForegroundBackground(**FIELDS)(evidence(Painter()))
    assert "masks: true" in str(score.reason)
    for fields in ({"strength": 0.0}, {"strength": 1.5}, {"limit": 0}, {"guidance": 0.0}):
        with pytest.raises(ConfigError, match="must be"):
            ForegroundBackground(**fields)
