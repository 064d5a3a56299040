"""Hostile, damaged and unusual images: what cannot be used is refused, what can loses its metadata."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from api_tests.support.fake_service import Api, assert_problem, encode_image, gradient_image, png


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    width: int, height: int, *, data: bytes = b"", extra: bytes = b"", depth: int = 8, colour: int = 0
) -> bytes:
    """A PNG whose header says whatever it likes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    frames = [gradient_image(), gradient_image().rotate(180)]
    return encode_image(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)


def sixteen_bit() -> bytes:
    return encode_image(Image.fromarray(np.arange(72, dtype=np.uint16).reshape(8, 9) * 900))


def deep(colour: int, samples: int) -> bytes:
    """A PNG of 16 bits a channel."""
    rows = (b"\0" + b"\x12\x34" * 9 * samples) * 8
    return raw_png(9, 8, data=zlib.compress(rows), depth=16, colour=colour)


def grey(*extra: bytes) -> bytes:
    """A PNG of 9x8 with more in it than pixels."""
    return raw_png(9, 8, data=zlib.compress((b"\0" + bytes(9)) * 8), extra=b"".join(extra))


def jpeg_frame(place: int, says: bytes) -> bytes:
    """A JPEG whose frame says something else at this place after its marker."""
    whole = encode_image(gradient_image(64, 64), "JPEG")
    start = whole.index(b"\xff\xc0") + place
    return whole[:start] + says + whole[start + len(says) :]


def webp(place: int, says: bytes) -> bytes:
    whole = encode_image(gradient_image(64, 64), "WEBP")
    return whole[:place] + says + whole[place + len(says) :]


def corrupt(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


BAD_IMAGES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not an image at all",
    "html": lambda: b"<!doctype html><script>alert(1)</script>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "gif": lambda: encode_image(gradient_image(), "GIF"),
    "tiff": lambda: encode_image(gradient_image(), "TIFF"),
    "bmp": lambda: encode_image(gradient_image(), "BMP"),
    "ico": lambda: encode_image(gradient_image(32, 32), "ICO"),
    "pdf": lambda: b"%PDF-1.4\n%%EOF",
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "psd": lambda: b"8BPS\0\1" + bytes(40),
    "zip": lambda: b"PK\3\4" + bytes(100),
    "animated gif": lambda: animation("GIF"),
    "animated png": lambda: animation("PNG"),
    "animated webp": lambda: animation("WEBP"),
    "16 bit": sixteen_bit,
    "16 bit grey and alpha": lambda: deep(4, 2),
    "16 bit colour": lambda: deep(2, 3),
    "16 bit colour and alpha": lambda: deep(6, 4),
    "jpeg 2000": lambda: encode_image(gradient_image(32, 32), "JPEG2000"),
    "avif": lambda: encode_image(gradient_image(32, 32), "AVIF"),
    "ppm": lambda: encode_image(gradient_image(), "PPM"),
    "tga": lambda: encode_image(gradient_image(), "TGA"),
    "text bombs in a row": lambda: grey(
        *[chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(900_000)))] * 80
    ),
    "no pixels at all": lambda: raw_png(9, 8).replace(chunk(b"IDAT", b""), b""),
    "two heads": lambda: grey(raw_png(4000, 4000, colour=2)[8:33]),
    "seven bits": lambda: raw_png(9, 8, depth=7),
    "a colour type that there is not": lambda: raw_png(9, 8, colour=5),
    "a filter that there is not": lambda: raw_png(9, 8, data=zlib.compress((b"\x09" + bytes(9)) * 8)),
    "a chunk of four gigabytes": lambda: raw_png(9, 8)[:33] + b"\xff\xff\xff\xffIDATx",
    "jpeg without end": lambda: encode_image(gradient_image(), "JPEG")[:-2],
    "jpeg of 12 bits": lambda: jpeg_frame(4, b"\x0c"),
    "jpeg of no height": lambda: jpeg_frame(5, b"\0\0"),
    "jpeg of nine channels": lambda: jpeg_frame(9, b"\x09"),
    "lossless jpeg": lambda: jpeg_frame(0, b"\xff\xc3"),
    "jpeg without quantization": lambda: encode_image(gradient_image(), "JPEG").replace(
        b"\xff\xdb", b"\xff\xfe"
    ),
    "webp longer than it is": lambda: webp(4, b"\xff\xff\xff\xff"),
    "webp of nonsense": lambda: webp(20, bytes(12)),
    "0x0": lambda: raw_png(0, 0),
    "1x1": lambda: png(1, 1),
    "7x9": lambda: png(7, 9),
    "wrong crc": lambda: corrupt(png(), 29),
    "broken data": lambda: corrupt(png(64, 64), 60),
    "idat of text": lambda: raw_png(9, 9, data=b"hello"),
    "text bomb": lambda: raw_png(9, 9, extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000), 9))),
    "profile bomb": lambda: raw_png(
        9, 9, extra=chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(80_000_000), 9))
    ),
    "signature only": lambda: b"\x89PNG\r\n\x1a\n",
    "jpeg marker only": lambda: b"\xff\xd8\xff\xe0",
    "webp header only": lambda: b"RIFF\x24\0\0\0WEBPVP8 ",
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_unusable_image_is_422(api: Api, name: str) -> None:
    assert_problem(api.submit(wait=None, image=BAD_IMAGES[name]()), 422, "invalid_image", "image")


BIG_IMAGES: dict[str, Callable[[], bytes]] = {
    "4097 wide": lambda: png(4097, 8, "L"),
    "4097x1": lambda: png(4097, 1, "L"),
    "2^31 x 1": lambda: raw_png(2**31 - 1, 1),
    "jpeg of 65,535": lambda: jpeg_frame(5, b"\xff\xff\xff\xff"),
    "webp of 16,777,216": lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff" * 6 + b"VP8 ",
    "pixel bomb": lambda: raw_png(60_000, 60_000, data=zlib.compress(bytes(1_000_000))),
    "idat bomb": lambda: raw_png(30_000, 30_000, data=zlib.compress(bytes(50_000_000), 9)),
    "ten mebibytes and one": lambda: png() + bytes(10 * 2**20 + 1 - len(png())),
}


@pytest.mark.parametrize("name", BIG_IMAGES)
def test_too_large_image_is_413(api: Api, name: str) -> None:
    assert_problem(api.submit(wait=None, image=BIG_IMAGES[name]()), 413, "image_too_large", "image")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_image_is_422(api: Api, kind: str) -> None:
    whole = encode_image(gradient_image(64, 64), kind)
    for tenth in range(1, 10):
        image = whole[: len(whole) * tenth // 10]
        assert_problem(api.submit(wait=None, image=image), 422, "invalid_image", "image")


GOOD_IMAGES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode_image(gradient_image(), "JPEG"),
    "grey jpeg": lambda: encode_image(gradient_image(mode="L"), "JPEG"),
    "cmyk jpeg": lambda: encode_image(gradient_image(mode="CMYK"), "JPEG"),
    "arithmetic jpeg": lambda: encode_image(gradient_image(), "JPEG").replace(b"\xff\xc0", b"\xff\xc9"),
    "webp": lambda: encode_image(gradient_image(), "WEBP", lossless=True),
    "two bits": lambda: raw_png(9, 8, data=zlib.compress((b"\0" + b"\x1b" * 3) * 8), depth=2),
    "palette and transparency": lambda: encode_image(gradient_image(mode="P"), transparency=0),
    "one colour transparent": lambda: encode_image(gradient_image(), transparency=(0, 0, 0)),
    "idat bomb behind a small head": lambda: raw_png(
        9, 8, data=zlib.compress((b"\0" + bytes(9)) * 8 + bytes(80_000_000), 9)
    ),
    "missing end": lambda: png().removesuffix(chunk(b"IEND", b"")),
    "giant profile": lambda: encode_image(gradient_image(), "JPEG", icc_profile=bytes(3_000_000)),
    "a hundred thousand chunks": lambda: grey(*[chunk(b"tEXt", b"k\0v")] * 100_000),
    "what looks like many scans": lambda: png() + b"\xff\xda" * 1000,
    "jpeg and zip": lambda: encode_image(gradient_image(), "JPEG") + b"PK\x05\x06" + bytes(18),
    "a turn that there is not": lambda: jpeg_with_orientation(99),
    "palette": lambda: png(mode="P"),
    "one bit": lambda: png(mode="1"),
    "grey and alpha": lambda: png(mode="LA"),
    "rgba": lambda: png(mode="RGBA"),
    "trailing megabytes": lambda: png() + bytes(3 * 2**20),
    "png and html": lambda: png() + b"<script>alert(1)</script>",
    "exif of nonsense": lambda: encode_image(gradient_image(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 64),
    **{f"exif {turn}": lambda turn=turn: jpeg_with_orientation(turn) for turn in range(1, 9)},  # type: ignore[misc]
}


def jpeg_with_orientation(turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = turn, "<script>alert(1)</script>"
    return encode_image(gradient_image(), "JPEG", exif=exif)


@pytest.mark.parametrize("name", GOOD_IMAGES)
def test_unusual_image_is_accepted_and_loses_its_metadata(api: Api, name: str) -> None:
    job = api.run_job(image=GOOD_IMAGES[name]())
    data = api.client.get(job["links"]["artifacts"]["original.png"]).content
    assert b"script" not in data
    assert len(data) < 5000
    image = Image.open(io.BytesIO(data))
    assert not image.info
    swapped = name in {f"exif {turn}" for turn in range(5, 9)}
    assert image.size == ((8, 9) if swapped else (9, 8))
    assert (job["image"]["width"], job["image"]["height"]) == image.size
