"""Distances between two images in the usual measures. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from touchstone.images import Pixels

Plane = NDArray[np.float64]

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # for values in [0,1]

BAND = 64
"""Rows of the image that are compared at a time, so that intermediate results stay in the cache."""

BLOCK = 16
"""Pixels of a blurred line that one product of matrices gives; larger blocks multiply more zeros."""

MAX_COLUMNS = 512
"""Columns of such a product: for larger ones BLAS would start threads, which cost more than they save."""


def success_area(distances: ArrayLike, success: ArrayLike, largest: float) -> float:
    """How much an attack achieves over all radii up to `largest`: the area under its success rate, in [0,1].

    The rate at a radius is the share of images (N,) that are fooled within it, a step function of the radius,
    and it is integrated as one: an image fooled at distance d adds (1 - d / largest) / N, another adds
    nothing. So an attack that changes nothing scores 0, and one that needs no distance 1; straight lines
    between measured radii would give the first up to two thirds. Raises ValueError.
    """
    d, fooled = np.asarray(distances, dtype=np.float64), np.asarray(success, dtype=bool)
    if d.shape != fooled.shape or d.ndim != 1 or not len(d):
        raise ValueError(
            f"distances and success: expected two lists of one length, not {d.shape}, {fooled.shape}"
        )
    if not largest > 0:
        raise ValueError(f"largest: expected a positive radius, not {largest}")
    return float(np.where(fooled, np.clip(1 - d / largest, 0, 1), 0.0).mean())


def measure_perturbation(original: Pixels, adversarial: Pixels) -> dict[str, float | int]:
    """Distances of two 8-bit images (H, W, C), in units of the box [0,1].

    `l0` counts changed values (a pixel has one a channel), `tv` is the mean absolute difference of
    neighboring values of the perturbation, `ssim` the structural similarity of the images (Wang et al.
    2004).
    """
    levels = adversarial.astype(np.int16) - original
    change = np.abs(levels)
    square = sum(
        int((band.astype(np.int64) ** 2).sum()) for band in np.array_split(change, -(-len(change) // BAND))
    )
    return {
        "linf": int(change.max()) / 255,
        "l2": float(np.sqrt(square)) / 255,
        "l1": int(change.sum(dtype=np.int64)) / 255,
        "l0": int(np.count_nonzero(change)),
        "tv": total_variation(levels / 255),
        "ssim": ssim(original, adversarial, levels=255),
    }


def total_variation(d: Plane) -> float:
    """Mean absolute difference between vertical and horizontal neighbors of (H, W, C)."""
    total, count = 0.0, 0
    for axis in (0, 1):
        steps = np.diff(d, axis=axis)
        total, count = total + np.abs(steps, out=steps).sum(), count + steps.size
    return float(total / count)


def ssim(a: Plane | Pixels, b: Plane | Pixels, levels: int = 1) -> float:
    """Mean structural similarity of images (H, W, C) in [0, levels], averaged over channels.

    Gaussian windows of 11 pixels and σ = 1.5, population covariance, borders without a whole window left out;
    smaller images take the largest odd window that fits.
    """
    size = min(WINDOW, *(side - 1 + side % 2 for side in a.shape[:2]))
    offsets = np.arange(size) - size // 2
    kernel = np.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    height, width, channels = a.shape[0] - size + 1, a.shape[1] - size + 1, a.shape[2]
    total = 0.0
    for channel in range(channels):
        for top in range(0, height, BAND):
            rows = slice(top, min(top + BAND, height) + size - 1)
            bands = (a[rows, :, channel] / levels, b[rows, :, channel] / levels)
            total += float(_similarity(*bands, kernel).sum())
    return float(total / (height * width * channels))


def _similarity(a: Plane, b: Plane, kernel: Plane) -> Plane:
    """The structural similarity at each place (H, W) that has a whole window."""
    mean_a, mean_b, squares, products = _blur(np.stack([a, b, a * a + b * b, a * b]), kernel)
    means = mean_a * mean_b
    mean_squares = mean_a * mean_a + mean_b * mean_b
    luminance: Plane = (2 * means + C1) / (mean_squares + C1)
    structure: Plane = (2 * (products - means) + C2) / (squares - mean_squares + C2)
    return luminance * structure


def _blur(images: Plane, kernel: Plane) -> Plane:
    """Images (N, H, W) convolved with a line in both directions, where the whole line fits.

    Done as products with banded matrices: numpy has no faster convolution of so few values.
    """
    reach = len(kernel) - 1
    band = np.zeros((BLOCK, BLOCK + reach))
    for row in range(BLOCK):
        band[row, row : row + len(kernel)] = kernel
    count, height, width = images.shape
    across = np.empty((count, height, width - reach))
    for left in range(0, width - reach, BLOCK):
        n = min(BLOCK, width - reach - left)
        window = images[:, :, left : left + n + reach]
        np.matmul(window, band[:n, : n + reach].T, out=across[:, :, left : left + n])
    blurred = np.empty((count, height - reach, width - reach))
    for top in range(0, height - reach, BLOCK):
        n = min(BLOCK, height - reach - top)
        for left in range(0, width - reach, MAX_COLUMNS):
            columns = slice(left, left + MAX_COLUMNS)
            window = across[:, top : top + n + reach, columns]
            np.matmul(band[:n, : n + reach], window, out=blurred[:, top : top + n, columns])
    return blurred
