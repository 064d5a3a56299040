"""Distances between two images in the usual measures. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from touchstone.images import Pixels

Plane = NDArray[np.float64]

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # for values in [0,1]


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
    levels = adversarial.astype(np.int64) - original.astype(np.int64)
    change = np.abs(levels)
    return {
        "linf": int(change.max()) / 255,
        "l2": float(np.sqrt((change**2).sum())) / 255,
        "l1": int(change.sum()) / 255,
        "l0": int(np.count_nonzero(change)),
        "tv": total_variation(levels / 255),
        "ssim": ssim(original / 255, adversarial / 255),
    }


def total_variation(d: Plane) -> float:
    """Mean absolute difference between vertical and horizontal neighbors of (H, W, C)."""
    steps = [np.abs(np.diff(d, axis=axis)) for axis in (0, 1)]
    return float(sum(step.sum() for step in steps) / sum(step.size for step in steps))


def ssim(a: Plane, b: Plane) -> float:
    """Mean structural similarity of images (H, W, C) in [0,1], averaged over channels.

    Gaussian windows of 11 pixels and σ = 1.5, population covariance, borders without a whole window left out;
    smaller images take the largest odd window that fits.
    """
    size = min(WINDOW, *(side - 1 + side % 2 for side in a.shape[:2]))
    offsets = np.arange(size) - size // 2
    kernel = np.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    mean_a, mean_b = _blur(a, kernel), _blur(b, kernel)
    var_a, var_b = _blur(a * a, kernel) - mean_a**2, _blur(b * b, kernel) - mean_b**2
    covariance = _blur(a * b, kernel) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (var_a + var_b + C2)
    return float((luminance * structure).mean())


def _blur(image: Plane, kernel: Plane) -> Plane:
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(image, len(kernel), axis=axis)
        image = windows @ kernel
    return image
