"""How far what a model draws is from real images, in the judges' features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.errors import DataError, MissingEvidence
from expunge.evaluation import gallery as galleries
from expunge.evaluation import picture_judges, statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery, Target
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.picture_judges import Judge
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats

FEWEST = 2
"""Images of each side that a covariance needs at least."""


@metrics.register("frechet")
@dataclass(frozen=True, kw_only=True)
class Frechet(Metric):
    """The Fréchet distance between drawn and real images of the retained concepts.

    ``‖μ_g − μ_r‖² + tr(C_g + C_r − 2 (C_r^½ C_g C_r^½)^½)`` with means and covariances of the judges'
    features, those of all domains side by side, of the images drawn from prompts without a forgotten concept
    and of the retained training images. In float64, with roots by eigenvalues. Interval: a jackknife over the
    seeds, as the bootstrap repeats images and so makes covariances too small and distances too large.

    Of few images the distance is far above 0 even where both are from one distribution, the more so the more
    features there are: ``details["floor"]`` and the score's ``perfect`` are its value for as many real test
    images of the same concepts. Values of other numbers of images do not compare.

    Args:
        gallery, judge: how images are drawn, and whose features are compared.

    Ideal: the retrained model's value; not below the floor.
    Cost: as unlearning_accuracy, whose images it shares, and looking at all retained images once.
    Differs: the authors take Inception's Mixed_7c of images that are normalised twice; a network that was
        trained on other images says little of these. Their values do not compare with any others either.
    References: Heusel et al., NeurIPS 2017, arXiv:1706.08500; Zhang et al., 2024, arXiv:2402.11846.
    """

    gallery: Gallery = Gallery()
    judge: Judge = Judge()
    unit = "index"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "Fréchet distance", "retain", "-".join(self.gallery.words)

    def measure(self, evidence: Evidence) -> Score:
        goal = galleries.target(evidence)
        drawn, said, who = picture_judges.seen(evidence, self.gallery, self.judge)
        counted = (~goal.among(drawn.cells)).nonzero()[:, 0]
        seeds = torch.arange(len(drawn.cells)) % len(self.gallery.seeds)
        mine, seeds = said.features[counted], seeds[counted]
        _, truth = picture_judges.real(evidence, "retain", self.judge)
        value = frechet(mine, truth.features)
        floor, count = self._floor(evidence, goal, drawn.cells[counted], truth.features)
        name, part, variant = self.labels(evidence)
        details: dict[str, Any] = {**who.details, "floor": floor, "floor_images": count}
        if count < len(mine):
            details.setdefault(
                "note", f"The floor rests on {count} test images, the value on {len(mine)}; fewer give more."
            )
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=value,
            interval=_jackknife(value, mine, seeds, truth.features),
            n=len(mine),
            target="retrained",
            unit="index",
            perfect=floor,
            details=details,
        )

    def _floor(self, evidence: Evidence, goal: Target, asked: Tensor, truth: Tensor) -> tuple[float, int]:
        """The distance of real test images, up to as many of each combination of concepts as were drawn."""
        cells, seen = picture_judges.real(evidence, "test", self.judge)
        rows = []
        for cell in asked.unique(dim=0):
            there = (cells == cell).all(1).nonzero()[:, 0]
            rows.append(there[: int((asked == cell).all(1).sum())])
        chosen = torch.cat(rows)
        if len(chosen) < FEWEST:
            raise MissingEvidence(
                f"{len(chosen)} test images show retained concepts, too few to know the distance of real "
                "images from each other. Give the split more of them."
            )
        return frechet(seen.features[chosen], truth), len(chosen)


def frechet(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of the Gaussians with the means and covariances of two samples ``(N, F)``, ``(M, F)``.

    Raises:
        DataError: fewer than two of either, or another number of features.
    """
    if first.shape[1] != second.shape[1] or min(len(first), len(second)) < FEWEST:
        raise DataError(
            f"a Fréchet distance needs two samples (N, F) with at least {FEWEST} rows, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    (mean1, cov1), (mean2, cov2) = ((x.double().mean(0), torch.cov(x.double().T)) for x in (first, second))
    return gaussians(mean1, cov1.view(len(mean1), -1), mean2, cov2.view(len(mean2), -1))


def gaussians(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Fréchet distance of two Gaussians, means ``(F,)`` and covariances ``(F, F)`` in float64; at least 0."""
    root = _root(cov2)
    middle = root @ cov1 @ root
    shared = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp(min=0).sqrt().sum()
    found = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * shared
    return max(0.0, float(found))


def _root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _jackknife(value: float, mine: Tensor, seeds: Tensor, truth: Tensor) -> tuple[float, float] | None:
    """``θ ± t_{K−1} √((K − 1)/K Σ (θ_k − θ̄)²)`` over values ``θ_k`` without the images of one seed."""
    every = seeds.unique()
    if len(every) < 2 or any(int((seeds != seed).sum()) < FEWEST for seed in every):
        return None
    without: Floats = np.array([frechet(mine[seeds != seed], truth) for seed in every])
    spread = without - without.mean()
    pseudo = (len(every) - 1) * spread
    around = statistics.mean_of_few(value - pseudo + pseudo.mean())
    return None if around is None else (max(0.0, around[0]), around[1])
