"""Checks a request of the Open Inference Protocol and decodes its images."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.inference.protocol import InferenceRequest, InputTensor
from service.submissions import bodies
from service.submissions.bodies import RawBody
from touchstone.errors import CostTooHigh, Failure, ImageTooLarge, InvalidParameter
from touchstone.images import MAX_PIXELS, MAX_SIDE, MIN_SIDE, Pixels
from touchstone.json_limits import JsonLimits
from touchstone.methods import invalid_parameter
from touchstone.methods.inference import Stack
from touchstone.models.manifest import InputSpec
from touchstone.sandbox.decoder_pool import Decoders
from touchstone.settings import Settings

HEADER_LENGTH = "Inference-Header-Content-Length"

_TENSOR_LIMITS = JsonLimits(containers=2**18, values=2**22)
"""Of a tensor in JSON; larger ones are sent flat, or as bytes."""

_DATA, _SHAPE = "inputs.0.data", "inputs.0.shape"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class ParsedRequest:
    """A parsed request, and its images: consecutive ones of equal size in one stack."""

    request: InferenceRequest
    stacks: Sequence[Stack]

    @property
    def rows(self) -> int:
        """The number of images."""
        return sum(map(len, self.stacks))


def parse_request(
    received: RawBody, header_length: str | None, spec: InputSpec, settings: Settings, decoders: Decoders
) -> ParsedRequest:
    """Parse a body and check it against the model's input. Raises InvalidParameter, InvalidImage,
    ImageTooLarge, CostTooHigh, and 400 where the body cannot be read.
    """
    head, tail = _split(received.content, header_length)
    try:
        request = InferenceRequest.model_validate(bodies.json_fields(head, _TENSOR_LIMITS))
    except ValidationError as error:
        raise invalid_parameter(error) from None
    tensor = request.inputs[0]
    _check_rows(tensor.shape[0], min(settings.inference_rows, settings.cost_limit))
    data = _binary_data(tensor, tail)
    if tensor.datatype == "FP32":
        return ParsedRequest(request, [_floats(tensor, data, spec)])
    if tensor.datatype == "UINT8":
        return ParsedRequest(request, [_pixels(tensor, data)])
    return ParsedRequest(request, _decode_files(tensor, data, settings.upload_limit, decoders))


def _split(content: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """The JSON, and the bytes that follow it."""
    if header_length is None:
        return content, b""
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 20):
        bodies.raise_invalid(f"{HEADER_LENGTH}: expected the number of bytes of the JSON")
    length = int(header_length)
    if length > len(content):
        bodies.raise_invalid(f"{HEADER_LENGTH}: {length:,} bytes, but the body has {len(content):,}")
    return content[:length], content[length:]


def _check_rows(rows: int, limit: int) -> None:
    if rows < 1:
        raise _invalid(_SHAPE, "there is no image in it; the first number counts the images")
    if rows > limit:
        raise CostTooHigh(
            f"the request has {rows:,} images; at most {limit:,} are allowed: send them in several requests",
            cost={"forward": rows, "backward": 0, "total": rows},
            limit=limit,
        )


def _binary_data(tensor: InputTensor, tail: bytes) -> bytes | None:
    """The tensor's bytes, where its data is not in the JSON."""
    size = tensor.parameters.binary_data_size
    if size is not None and tensor.data is not None:
        raise _invalid(_DATA, "given beside binary_data_size; send the numbers or the bytes")
    if len(tail) != (size or 0):
        raise InvalidParameter(
            f"inputs.0.parameters.binary_data_size: {size or 0:,} bytes, but {len(tail):,} follow the JSON",
            field="inputs.0.parameters.binary_data_size",
        )
    if size is None and not isinstance(tensor.data, list):
        raise _invalid(_DATA, f"expected a list, or {HEADER_LENGTH} and binary_data_size for bytes")
    return None if size is None else tail


def _floats(tensor: InputTensor, data: bytes | None, spec: InputSpec) -> NDArray[np.float32]:
    wanted = [spec.channels, spec.height, spec.width]
    if tensor.shape[1:] != wanted:
        raise _invalid(
            _SHAPE,
            f"FP32 images of this model are [N, {', '.join(map(str, wanted))}], not {tensor.shape};"
            " send UINT8 or BYTES for other sizes",
        )
    values = _array(tensor, data, "<f4", {int, float})
    if not (values.min() >= 0 and values.max() <= 1):  # catches NaN, too
        raise _invalid(_DATA, "values must lie in [0,1]; mean and standard deviation are applied here")
    return values.astype(np.float32)


def _pixels(tensor: InputTensor, data: bytes | None) -> Pixels:
    sides, channels = tensor.shape[1:3], tensor.shape[3:]
    if channels not in ([1], [3]):
        raise _invalid(_SHAPE, f"UINT8 images are [N, height, width, 1 or 3], not {tensor.shape}")
    if not MIN_SIDE <= min(sides) <= max(sides) <= MAX_SIDE:
        raise _invalid(_SHAPE, f"sides of {MIN_SIDE} to {MAX_SIDE} px, not {sides[0]} and {sides[1]}")
    values = _array(tensor, data, "u1", {int})
    if not (values.min() >= 0 and values.max() <= 255):
        raise _invalid(_DATA, "values must lie in 0 to 255")
    return values.astype(np.uint8)


def _array(tensor: InputTensor, data: bytes | None, kind: str, types: set[type]) -> NDArray[Any]:
    """The tensor in its shape, after a check of the number of elements."""
    count, size = math.prod(tensor.shape), np.dtype(kind).itemsize
    if data is None:
        return _numbers(_flatten(tensor), types).reshape(tensor.shape)
    if len(data) != count * size:
        raise _invalid(_SHAPE, f"{tensor.shape} takes {count * size:,} bytes, but {len(data):,} were sent")
    return np.frombuffer(data, kind).reshape(tensor.shape)


def _flatten(tensor: InputTensor) -> list[Any]:
    """The elements of data that is flat, or nested as the shape is."""
    level: list[Any] = tensor.data
    found = [len(level)]
    while set(map(type, level)) == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise _invalid(_DATA, f"lists of different lengths beside each other, at depth {len(found)}")
        found.append(lengths.pop())
        level = list(chain.from_iterable(level))
    if found not in (tensor.shape, [math.prod(tensor.shape)]):
        raise _invalid(_SHAPE, f"{tensor.shape}, but the data is {found}")
    return level


def _numbers(values: list[Any], types: set[type]) -> NDArray[np.float64]:
    if not set(map(type, values)) <= types:
        raise _invalid(_DATA, "expected numbers" if float in types else "expected whole numbers")
    try:
        return np.array(values, np.float64)
    except OverflowError:
        raise _invalid(_DATA, "a number is too large") from None


def _decode_files(tensor: InputTensor, data: bytes | None, limit: int, decoders: Decoders) -> list[Stack]:
    """The decoded images of files; all together they may have the pixels of one upload."""
    if any(side != 1 for side in tensor.shape[1:]):
        raise _invalid(_SHAPE, f"BYTES are [N], one file an image, not {tensor.shape}")
    count = tensor.shape[0]
    given = _flatten(tensor) if data is None else list(islice(_split_elements(data), count + 1))
    if len(given) != count:
        more = "more" if len(given) > count else len(given)
        raise _invalid(_SHAPE, f"{tensor.shape}, but there are {more} files")
    images: list[Pixels] = []
    for place, one in enumerate(given):
        images.append(_decode_image(place, one, limit, decoders))
        if sum(image.shape[0] * image.shape[1] for image in images) > MAX_PIXELS:
            raise ImageTooLarge(f"{_DATA}: the images have more than {MAX_PIXELS:,} pixels", field=_DATA)
    return [np.stack(list(run)) for _, run in groupby(images, key=lambda image: image.shape)]


def _decode_image(index: int, given: Any, limit: int, decoders: Decoders) -> Pixels:
    try:
        return decoders.pixels(bodies.image_bytes(given, limit))
    except Failure as failure:
        detail = failure.detail.removeprefix("image: ")
        raise type(failure)(f"{_DATA}.{index}: {detail}", field=f"{_DATA}.{index}") from None


def _split_elements(data: bytes) -> Iterator[bytes]:
    """The elements of a BYTES tensor, each preceded by its length."""
    place = 0
    while place < len(data):
        if place + _LENGTH.size > len(data):
            raise _invalid(_DATA, "the bytes end within the length of an element")
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size + length
        if place > len(data):
            raise _invalid(_DATA, "the bytes end within an element")
        yield data[place - length : place]


def _invalid(field: str, text: str) -> InvalidParameter:
    return InvalidParameter(f"{field}: {text}", field=field)
