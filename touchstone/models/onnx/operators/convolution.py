"""Convolutions in one, two and three dimensions, and their transposes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from touchstone.models.onnx.operators.windows import Sizes, halves, margins, window
from touchstone.models.onnx.registry import operator

_CONV = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_TRANSPOSED = {
    3: functional.conv_transpose1d,
    4: functional.conv_transpose2d,
    5: functional.conv_transpose3d,
}


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    kernel = _kernel(weight, kernel_shape)
    place = window(
        tuple(x.shape[2:]), kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
    )
    if place.symmetric:
        return _CONV[x.ndim](x, weight, bias, place.strides, place.begin, place.dilations, group)
    padded = functional.pad(x, place.margins)
    return _CONV[x.ndim](padded, weight, bias, place.strides, 0, place.dilations, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    output_padding: Sizes | None = None,
    output_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    sizes, kernel = tuple(x.shape[2:]), _kernel(weight, kernel_shape)
    place = window(sizes, kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=_notset(auto_pad))
    extra = output_padding or (0,) * len(sizes)
    whole = tuple((n - 1) * s + span for n, s, span in zip(sizes, place.strides, place.spans, strict=True))
    begin, end = place.begin, place.end
    if auto_pad.startswith("SAME") and not output_shape:
        output_shape = tuple(n * s for n, s in zip(sizes, place.strides, strict=True))
    if output_shape:
        wanted = zip(whole, extra, output_shape[-len(sizes) :], strict=True)
        surplus = tuple(size + more - out for size, more, out in wanted)
        begin, end = halves(tuple(max(side, 0) for side in surplus), upper=auto_pad != "SAME_LOWER")
        extra = tuple(more - min(side, 0) for more, side in zip(extra, surplus, strict=True))
    full = _TRANSPOSED[x.ndim](x, weight, None, place.strides, 0, 0, group, place.dilations)
    crop = margins(tuple(-b for b in begin), tuple(more - e for more, e in zip(extra, end, strict=True)))
    y = functional.pad(full, crop) if any(crop) else full
    return y if bias is None else y + bias.view(-1, *[1] * len(sizes))


def _notset(auto_pad: str) -> str:
    """For a transposed convolution, "same" determines the output size, not the window's position."""
    return "NOTSET" if auto_pad.startswith("SAME") else auto_pad


def _kernel(weight: Tensor, declared: Sizes | None) -> Sizes:
    kernel = tuple(weight.shape[2:])
    if declared and declared != kernel:
        raise ValueError(f"kernel_shape {declared} is not that of the weights, {kernel}")
    return kernel
