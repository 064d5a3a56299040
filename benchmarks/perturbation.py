"""What measuring a perturbation costs, beside the same with SciPy's filters and with numpy's windows.

Seconds are those of the processor: the measures run beside the engine, which uses whatever they leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks.networks import PHOTOS
from benchmarks.record import save
from touchstone.evaluation import perturbation
from touchstone.images import Pixels

Array = NDArray[np.float64]
ROUNDS = 15
CHANGE = 2


def main() -> None:
    """A photo of 451 × 300 pixels, changed by up to two levels everywhere."""
    original, adversarial = make_pair()
    measures: dict[str, Callable[[Array, Array], float]] = {
        "touchstone": perturbation.ssim,
        "scipy": lambda a, b: ssim(a, b, blur_with_scipy),
        "sliding windows": lambda a, b: ssim(a, b, blur_with_windows),
    }
    seconds = {name: float("inf") for name in measures}
    values = {}
    for _ in range(ROUNDS):
        for name, measure in measures.items():
            with patch.object(perturbation, "ssim", measure):
                began = time.process_time()
                values[name] = perturbation.measure_perturbation(original, adversarial)
                seconds[name] = min(seconds[name], time.process_time() - began)
    ours = values["touchstone"]
    others = [one for name, one in values.items() if name != "touchstone"]
    save(
        "perturbation",
        {
            "milliseconds": {name: round(1e3 * least, 1) for name, least in seconds.items()},
            "ratio": {name: round(seconds["touchstone"] / least, 2) for name, least in seconds.items()},
            "largest difference": max(abs(ours[key] - one[key]) for one in others for key in ours),
        },
    )


def make_pair() -> tuple[Pixels, Pixels]:
    with Image.open(PHOTOS / "chelsea.png") as image:
        original = np.asarray(image.convert("RGB"))
    change = np.random.default_rng(0).integers(-CHANGE, CHANGE + 1, original.shape)
    return original, np.clip(original + change, 0, 255).astype(np.uint8)


def ssim(a: Array, b: Array, blur: Callable[[Array, Array], Array]) -> float:
    """The definition, with means, variances and covariance by some blur of images (H, W, C)."""
    offsets = np.arange(perturbation.WINDOW) - perturbation.WINDOW // 2
    kernel = np.exp(-(offsets**2) / (2 * perturbation.SIGMA**2))
    kernel /= kernel.sum()
    mean_a, mean_b = blur(a, kernel), blur(b, kernel)
    var_a, var_b = blur(a * a, kernel) - mean_a**2, blur(b * b, kernel) - mean_b**2
    covariance = blur(a * b, kernel) - mean_a * mean_b
    c1, c2 = perturbation.C1, perturbation.C2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((luminance * (2 * covariance + c2) / (var_a + var_b + c2)).mean())


def blur_with_windows(image: Array, kernel: Array) -> Array:
    for axis in (0, 1):
        image = np.lib.stride_tricks.sliding_window_view(image, len(kernel), axis=axis) @ kernel
    return image


def blur_with_scipy(image: Array, kernel: Array) -> Array:
    border = len(kernel) // 2
    for axis in (0, 1):
        image = ndimage.correlate1d(image, kernel, axis=axis)
    return image[border:-border, border:-border]


if __name__ == "__main__":
    main()
