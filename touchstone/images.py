"""Image files to arrays and back: which files are accepted, and the PNG that is attacked, judged and
returned.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from touchstone.errors import ImageTooLarge, InvalidImage

MIN_SIDE = 8
MAX_SIDE = 4096
MAX_PIXELS = MAX_SIDE**2
FORMATS = ("PNG", "JPEG", "WEBP")
MPO = "MPO"
"""What Pillow calls a JPEG with further pictures after the first."""

MAX_SCANS = 64
"""Each scan of a progressive JPEG takes time for all pixels, however few bytes it has. Encoders write six to
twenty: ten by default in libjpeg, a few more where they search for the smallest file."""

Pixels = NDArray[np.uint8]
"""(H, W, C) with C = 1 (gray) or 3 (RGB)."""

_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
"""A marker in a JPEG: within the data of a scan, a byte 255 that is no marker is followed by a zero."""

_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a segment: TEM, restarts and the start of the image."""

_SCAN, _END = 0xDA, 0xD9


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of an upload, and the conversions that led to them."""

    pixels: Pixels
    conversions: tuple[str, ...]


def decode(data: bytes, *, on_loaded: Callable[[], object] = lambda: None) -> DecodedImage:
    """Decode a PNG, JPEG or WebP, recognized by its content, into gray or RGB pixels.

    EXIF orientation is applied; transparency is laid over white; palettes and 1-bit images become RGB or
    gray; CMYK becomes RGB; of a JPEG with further pictures inside (MPO, as cameras write it) the first is
    taken. Each conversion is listed. 16-bit images, animations and anything outside the limits are refused.
    `on_loaded` is called once the file is decoded, before conversions.
    """
    if not data:
        raise InvalidImage("image: the file is empty", field="image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_header(image, data)
                image.load()
                on_loaded()
                return _convert(image)
    except (InvalidImage, ImageTooLarge):
        raise
    except Image.DecompressionBombError:
        raise ImageTooLarge(f"image: more than {MAX_PIXELS:,} pixels", field="image") from None
    except UnidentifiedImageError:
        raise InvalidImage(
            "image: the file is no PNG, JPEG or WebP; send one of these", field="image"
        ) from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise nearly any type on damaged files
        reason = f"{type(error).__name__}: {error}"[:200]
        raise InvalidImage(
            f"image: not a readable PNG, JPEG or WebP file ({reason})", field="image"
        ) from None


def _check_header(image: Image.Image, data: bytes) -> None:
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise ImageTooLarge(
            f"image: {width}x{height} is too large: at most {MAX_SIDE} px a side", field="image"
        )
    if min(width, height) < MIN_SIDE:
        raise InvalidImage(
            f"image: {width}x{height} is too small: sides of at least {MIN_SIDE} px", field="image"
        )
    if image.format != MPO and _count_frames(image) > 1:
        raise InvalidImage("image: an animation; send a single frame", field="image")
    if _exceeds_8_bits(image):
        raise InvalidImage(
            "image: it has more than 8 bits a channel; convert it to 8 bits first", field="image"
        )
    if image.format in ("JPEG", MPO) and (scans := count_scans(data)) > MAX_SCANS:
        raise InvalidImage(
            f"image: a JPEG of {scans:,} scans; at most {MAX_SCANS} are allowed: save it again, not "
            "progressive",
            field="image",
        )


def count_scans(jpeg: bytes) -> int:
    """The scans of the first picture of a JPEG, by its markers; those of a thumbnail in it do not count."""
    scans = position = 0
    while found := _MARKER.search(jpeg, position):
        position, marker = found.end(), found[1][0]
        if marker == _END:
            break
        if marker not in _BARE_MARKERS:
            position += int.from_bytes(jpeg[position : position + 2])
        scans += marker == _SCAN
    return scans


def _count_frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1)


def _exceeds_8_bits(image: Image.Image) -> bool:
    """Whether decoding would drop bits: Pillow opens 16-bit RGB as 8-bit; only the raw mode shows it."""
    raw_modes = (
        tile.args[0] if isinstance(tile.args, tuple) else tile.args for tile in getattr(image, "tile", ())
    )
    return any("16" in str(mode) for mode in raw_modes)


def _convert(image: Image.Image) -> DecodedImage:
    done = [f"the first of {_count_frames(image)} pictures taken"] if image.format == MPO else []
    upright = ImageOps.exif_transpose(image)
    if upright.size != image.size or upright.tobytes() != image.tobytes():
        done.append("EXIF orientation applied")
    image = upright
    if image.has_transparency_data:
        done.append(f"transparency of {image.mode} laid over white")
        rgba = image.convert("RGBA")
        gray = image.mode == "LA"
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert(
            "L" if gray else "RGB"
        )
    elif image.mode not in ("L", "RGB"):
        mode = "L" if image.mode in ("1", "LA") else "RGB"
        done.append(f"{image.mode} converted to {'gray' if mode == 'L' else 'RGB'}")
        image = image.convert(mode)
    pixels = np.asarray(image)
    return DecodedImage(pixels[:, :, None] if pixels.ndim == 2 else pixels, tuple(done))


def encode(pixels: Pixels) -> bytes:
    """The pixels as a PNG without metadata; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def difference(original: Pixels, adversarial: Pixels, factor: int) -> Pixels:
    """The change of each value times `factor`, on mid-gray: 128 means unchanged."""
    change = adversarial.astype(np.int32) - original.astype(np.int32)
    return np.clip(128 + factor * change, 0, 255).astype(np.uint8)


def difference_factor(original: Pixels, adversarial: Pixels) -> int:
    """The largest whole factor at which no change is clipped, at most 127; 1 where nothing changed."""
    largest = int(np.abs(adversarial.astype(np.int32) - original.astype(np.int32)).max(initial=0))
    return max(1, min(127, 127 // largest)) if largest else 1
