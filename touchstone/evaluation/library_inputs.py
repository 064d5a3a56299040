"""Validation of library arguments: images, labels and seeds, with errors that explain what is wrong."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from touchstone.engine.quantization import from_pixels
from touchstone.errors import InvalidParameter
from touchstone.models.manifest import class_index

Images = Tensor | Sequence[Image]
Labels = Tensor | Sequence[int | str] | None


def to_stacks(images: Images, device: torch.device, *, resized: bool) -> list[Tensor]:
    """The images as tensors (B, C, H, W): one for a tensor, one of a single row for each PIL image.

    Those that are to be `resized` have the channels of a file.
    """
    if isinstance(images, Tensor):
        _check_images(images, resized=resized)
        return [images.detach().to(device, torch.float32)]
    if not isinstance(images, Iterable) or isinstance(images, str | bytes | np.ndarray | Image):
        raise InvalidParameter(
            f"images: expected a tensor (N, C, H, W) or a list of PIL images, not {type(images).__name__}",
            field="images",
        )
    given = list(images)
    for image in given:
        if not isinstance(image, Image):
            raise InvalidParameter(
                f"images: expected a list of PIL images, not one with {type(image).__name__}; open files "
                "with PIL.Image.open, and stack tensors",
                field="images",
            )
    if not given:
        raise InvalidParameter("images: there are none", field="images")
    return [_to_tensor(image).to(device) for image in given]


def _check_images(images: Tensor, *, resized: bool) -> None:
    shape = tuple(images.shape)
    if images.dim() != 4 or not len(images):
        raise InvalidParameter(
            f"images: expected a tensor (N, C, H, W), not one of shape {shape}", field="images"
        )
    if resized and shape[1] not in (1, 3):
        raise InvalidParameter(
            f"images: expected 1 or 3 channels, (N, C, H, W), not a tensor of shape {shape}", field="images"
        )
    if not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise InvalidParameter("images: values must lie in [0,1]; divide 8-bit values by 255", field="images")


def _to_tensor(image: Image) -> Tensor:
    gray = image.mode in ("L", "1", "LA")
    pixels = torch.from_numpy(np.array(image.convert("L" if gray else "RGB")))
    return from_pixels(pixels[None, None] if gray else pixels.permute(2, 0, 1)[None])


def label_indices(
    labels: Labels, classes: Sequence[str], count: int, *, model: str = "the model", field: str = "labels"
) -> Tensor | None:
    """Each row's class index; None where no labels were given."""
    if labels is None:
        return None
    if isinstance(labels, Tensor):
        labels = labels.long().flatten().tolist()
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        raise InvalidParameter(
            f"{field}: expected a list with one for each image, not {type(labels).__name__}", field=field
        )
    indices = torch.tensor([class_index(label, classes, model, field) for label in labels])
    if len(indices) != count:
        raise InvalidParameter(f"{field}: {len(indices)} {field} for {count} images", field=field)
    return indices


def noise_keys(seed: int | Sequence[int], count: int) -> list[tuple[int, int]]:
    """The key of each row's noise: the one seed with the row's index, or the row's own seed."""
    try:
        keys = [(parse_seed(seed), row) for row in range(count)]
    except TypeError:
        keys = [(parse_seed(one), 0) for one in seed]  # type: ignore[union-attr]
    if len(keys) != count:
        raise InvalidParameter(f"seed: {len(keys)} seeds for {count} images", field="seed")
    return keys


def parse_seed(seed: Any) -> int:
    """A seed as a non-negative integer; raises TypeError for anything else."""
    number = operator.index(seed)
    if number < 0:
        raise InvalidParameter("seed: it must not be negative", field="seed")
    return number
