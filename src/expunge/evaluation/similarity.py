"""How alike two images are, in a region."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import DataError

SIGMA = 1.5
"""Standard deviation of the window, in pixels."""

RADIUS = 5
"""The window ends after so many pixels: 11 × 11."""

C1, C2 = 0.01**2, 0.03**2
"""For values in [0, 1]."""


def ssim(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity of pairs of images in a region, from −1 to 1, 1 iff equal there.

    ``(2 μ_x μ_y + C₁)(2 σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂))``, averaged over colours and,
    with the mask's weights, over places. Means and variances are those of a Gaussian window in which every
    pixel counts as much as the mask says, so that nothing outside of the region has a part in them.

    Shapes: images ``(N, C, H, W)`` in [0, 1], mask ``(N, H, W)`` in [0, 1]; result ``(N,)``.

    Raises:
        DataError: shapes that differ, or a mask that is empty for some image.

    Differs: from Wang et al. at the border and beside the mask, where their windows take in what is outside.
    References: Wang, Bovik, Sheikh and Simoncelli, IEEE Transactions on Image Processing 13, 2004.
    """
    if first.shape != second.shape or first.ndim != 4:
        raise DataError(
            f"pairs of images (N, C, H, W) are compared, got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    x, y = first.double(), second.double()
    weight = torch.ones_like(x[:, :1]) if mask is None else mask.double()[:, None]
    total = weight.flatten(1).sum(1)
    if (total <= 0).any():
        raise DataError(f"the region of image {int((total <= 0).nonzero()[0])} is empty.")
    share = _blurred(weight)
    inside = share > 1e-12

    def mean(values: Tensor) -> Tensor:
        return torch.where(inside, _blurred(weight * values) / share.clamp(min=1e-12), 0)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    alike = (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return (weight * alike).flatten(1).sum(1) / (total * x.shape[1])


def _blurred(values: Tensor) -> Tensor:
    """Convolved with the Gaussian window; outside of the image is nothing."""
    places = torch.arange(-RADIUS, RADIUS + 1, dtype=values.dtype)
    window = torch.exp(-(places**2) / (2 * SIGMA**2))
    window = (window / window.sum()).to(values.device)
    channels = values.shape[1]
    row = window.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    across = F.conv2d(values, row, padding=(0, RADIUS), groups=channels)
    return F.conv2d(across, row.transpose(2, 3), padding=(RADIUS, 0), groups=channels)
