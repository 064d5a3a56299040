"""The memory of a job, compared with what it may need before it is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from touchstone.errors import CostTooHigh
from touchstone.methods.budget import total_footprint
from touchstone.methods.declaration import Method
from touchstone.methods.footprint import Footprint
from touchstone.methods.prediction import Predict

MIB = 2**20
CHANNELS = 3
"""Of an image that is not known yet."""
SMALLER = ("rivals", "eot", "samples", "batch", "population")
"""Parameters of which less may take less memory."""


@dataclass(frozen=True)
class ImageSize:
    """An upload, and the values of the network's own input."""

    width: int
    height: int
    channels: int = CHANNELS
    input_values: int = 0
    classes: int | None = None

    @property
    def values(self) -> int:
        """How many numbers it is."""
        return self.width * self.height * self.channels


def footprint_of(method: Method | Predict, image: ImageSize) -> Footprint:
    """What a job holds at most, if it considers no more classes than there are."""
    most = {} if image.classes is None else {"rivals": image.classes - 1, "candidates": image.classes}
    fewer = {name: most[name] for name in most if (getattr(method, name, None) or 0) > most[name]}
    return total_footprint(method.model_copy(update=fewer))


def memory_of(method: Method | Predict, image: ImageSize) -> int:
    """Bytes that a job may need for its images at most, those of the network aside."""
    side = max(image.width, image.height)
    return footprint_of(method, image).bytes(image.values, image.input_values, side)


def check_memory(method: Method | Predict, image: ImageSize, limit: int) -> None:
    """Raise `CostTooHigh` where the job may need more memory than the limit; it says what would fit."""
    needed = memory_of(method, image)
    if needed <= limit:
        return
    rows = footprint_of(method, image).rows(image.values)
    fits = dict(_find_fitting(method, image, limit))
    raise CostTooHigh(
        f"the job may need {_in_mib(needed)} of memory, for {rows} tensors of the image's {image.width}x"
        f"{image.height} pixels; at most {_in_mib(limit)} are allowed: {_describe(fits)}",
        memory={"rows": rows, "bytes": needed, "limit": limit},
        fits=fits,
    )


def _in_mib(size: int) -> str:
    return f"{-(-size // MIB):,} MiB"


def _describe(fits: dict[str, Any]) -> str:
    asked = [f"{name}={value}" for name, value in fits.items() if name not in ("width", "height")]
    asked += [f"an image of {fits['width']}x{fits['height']} pixels"] if "width" in fits else []
    return f"{' or '.join(asked)} would fit" if asked else "no image fits"


def _find_fitting(method: Method | Predict, image: ImageSize, limit: int) -> Iterator[tuple[str, int]]:
    """The largest smaller parameters that fit, each on its own, and the largest image of the same shape."""
    for name in SMALLER:
        now = getattr(method, name, None)
        if isinstance(now, int) and now > 1:

            def fits(value: int, name: str = name) -> bool:
                return memory_of(method.model_copy(update={name: value}), image) <= limit

            if least := _largest(fits, now - 1):
                yield name, least

    def holds(width: int) -> bool:
        return memory_of(method, _scale(image, width)) <= limit

    if width := _largest(holds, image.width - 1):
        yield "width", width
        yield "height", _scale(image, width).height


def _scale(image: ImageSize, width: int) -> ImageSize:
    height = max(1, image.height * width // image.width)
    return replace(image, width=width, height=height)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, where smaller ones fit, too; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
