"""Fréchet distances in closed form, and what they are of few images."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.micro import sound
from tests.evaluation.painters import READ, Painter, evidence

from expunge.errors import DataError
from expunge.evaluation.gallery import Gallery
from expunge.evaluation.metrics.frechet import Frechet, frechet, gaussians
from expunge.evaluation.picture_judges import Judge


def test_gaussians_in_closed_form() -> None:
    mean = torch.tensor([1.0, 2.0], dtype=torch.float64)
    # diagonal: ‖Δμ‖² + Σ (σ₁ − σ₂)²
    one, two = torch.diag(torch.tensor([4.0, 9.0]).double()), torch.diag(torch.tensor([1.0, 16.0]).double())
    assert gaussians(mean, one, mean + 3, two) == pytest.approx(18 + 1 + 1)
    assert gaussians(mean, one, mean, one) == pytest.approx(0, abs=1e-12)


def test_covariances_that_do_not_commute_agree_with_scipy() -> None:
    from scipy.linalg import sqrtm

    a, b = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, two, zero = a @ a.T, b @ b.T, torch.zeros(5, dtype=torch.float64)
    root = torch.as_tensor(sqrtm((one @ two).numpy())).real
    expected = float(one.trace() + two.trace() - 2 * root.trace())
    assert gaussians(zero, one, zero, two) == pytest.approx(expected, rel=1e-9)
    assert gaussians(zero, one, zero, two) == pytest.approx(gaussians(zero, two, zero, one), rel=1e-9)


def test_fewer_images_than_features_give_a_number_and_a_larger_one() -> None:
    draws = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    few, many, truth = draws[:10], draws[:500], draws[1000:]
    assert frechet(many, truth) < 1 < frechet(few, truth)  # all of one distribution
    with pytest.raises(DataError, match="at least 2 rows"):
        frechet(draws[:1], truth)


def test_the_score_has_its_floor_and_is_of_retained_images_alone() -> None:
    fields = {"gallery": Gallery(seeds=tuple(range(6)), steps=2, guidance=1.0), "judge": READ["judge"]}
    score = Frechet(**fields)(evidence(Painter()))
    sound(score)
    assert score.n == 18  # photos: 3 prompts of 6 seeds
    assert score.perfect == score.details["floor"] > 0
    assert score.details["floor_images"] == 6  # 2 test images of each
    assert "rests on 6 test images" in score.details["note"]
    assert score.interval is not None
    assert score.interval[0] < score.value < score.interval[1]
    # what becomes of the mosaics is not counted; what becomes of the photos is
    mosaics = Frechet(**fields)(evidence(Painter({(1, o): (-1, -1) for o in range(3)})))
    assert mosaics.value == score.value
    photos = Frechet(**fields)(evidence(Painter({(0, o): (1, o) for o in range(3)})))
    assert photos.value > score.value + 0.05
    # red of 2/4 for 1/4 is in the features of both judges: 2 · 0.25²
    assert photos.value - score.value == pytest.approx(2 * 0.25**2, rel=0.05)


def test_one_seed_has_no_interval() -> None:
    single = Gallery(seeds=(5,), steps=2, guidance=1.0)
    assert Frechet(gallery=single, judge=Judge(load=READ["judge"].load))(evidence(Painter())).interval is None
