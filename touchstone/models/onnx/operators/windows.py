"""Windows that slide over features, as convolutions and poolings have them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """The geometry of a window: one number for each spatial dimension."""

    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    begin: Sizes
    end: Sizes

    @cached_property
    def symmetric(self) -> bool:
        """Whether as much is added before as after."""
        return self.begin == self.end

    @cached_property
    def spans(self) -> Sizes:
        """The extent of the window in each dimension."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @cached_property
    def margins(self) -> list[int]:
        """The padding in PyTorch's order: the last dimension first."""
        return margins(self.begin, self.end)

    def positions(self, sizes: Sizes, *, ceil: bool) -> Sizes:
        """The number of positions of the window; with `ceil` the last may overhang, but not start beyond the
        end.
        """
        return tuple(
            _count_positions(size + before + after, span, stride, size + before, ceil=ceil)
            for size, before, after, span, stride in zip(
                sizes, self.begin, self.end, self.spans, self.strides, strict=True
            )
        )

    def overhang(self, sizes: Sizes, places: Sizes) -> Sizes:
        """The padding after the features with which there are exactly so many positions; may be negative."""
        return tuple(
            (count - 1) * stride + span - size - before
            for count, stride, span, size, before in zip(
                places, self.strides, self.spans, sizes, self.begin, strict=True
            )
        )


def _count_positions(whole: int, span: int, stride: int, start: int, *, ceil: bool) -> int:
    count = (whole - span + (stride - 1 if ceil else 0)) // stride + 1
    return count - 1 if ceil and (count - 1) * stride >= start else count


def margins(begin: Sizes, end: Sizes) -> list[int]:
    """Padding in PyTorch's order: the last dimension first."""
    return [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]


@lru_cache(maxsize=1024)
def window(
    sizes: Sizes,
    kernel: Sizes,
    *,
    strides: Sizes | None,
    dilations: Sizes | None,
    pads: Sizes | None,
    auto_pad: str,
) -> Window:
    """The window that an operator's attributes describe, over features of these sizes. Raises ValueError."""
    ones = (1,) * len(sizes)
    strides, dilations = strides or ones, dilations or ones
    if not len(kernel) == len(strides) == len(dilations) == len(sizes):
        raise ValueError(
            f"kernel {kernel}, strides {strides}, dilations {dilations} do not fit sizes {sizes}"
        )
    if min(*kernel, *strides, *dilations) < 1:
        raise ValueError("kernel, strides and dilations must be positive")
    plain = Window(kernel, strides, dilations, *_split_pads(pads or (0,) * 2 * len(sizes), len(sizes)))
    if auto_pad == "NOTSET":
        return plain
    if auto_pad == "VALID":
        return Window(kernel, strides, dilations, (0,) * len(sizes), (0,) * len(sizes))
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"auto_pad {auto_pad!r} is not known")
    total = tuple(
        max((-(-size // stride) - 1) * stride + span - size, 0)
        for size, stride, span in zip(sizes, strides, plain.spans, strict=True)
    )
    return Window(kernel, strides, dilations, *halves(total, upper=auto_pad == "SAME_UPPER"))


def halves(total: Sizes, *, upper: bool) -> tuple[Sizes, Sizes]:
    """Padding before and after; the odd one goes to the end when `upper`."""
    less, more = tuple(side // 2 for side in total), tuple(side - side // 2 for side in total)
    return (less, more) if upper else (more, less)


def _split_pads(pads: Sizes, rank: int) -> tuple[Sizes, Sizes]:
    if len(pads) != 2 * rank or min(pads) < 0:
        raise ValueError(f"pads {pads} must be {2 * rank} numbers that are not negative")
    return pads[:rank], pads[rank:]
