"""Mutated images for the decoders: whatever comes in, an image or a failure comes out, and no decoder dies.

`python -m api_tests.support.fuzz_images MINUTES` goes on for so long and keeps what killed a decoder in
build/fuzz.
"""

from __future__ import annotations

import random
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from api_tests.support.fake_service import encode_image, gradient_image
from touchstone.errors import ImageTooLarge, InvalidImage
from touchstone.ledger.records import LOCAL
from touchstone.sandbox.decoder_pool import DecoderPool

CRASH_FOLDER = Path(__file__).parents[2] / "build/fuzz"
MAX_BYTES = 10 * 2**20
MAX_SECONDS = 5.0
_SIGNATURE = 8

Mutation = Callable[[random.Random, bytearray], bytes]


def seed_files() -> list[bytes]:
    """A file of each accepted kind, and some that are refused."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [gradient_image(24, 16), gradient_image(24, 16).rotate(180)]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 100}
    return [
        *(encode_image(gradient_image(24, 16, mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *(encode_image(gradient_image(24, 16, mode), "JPEG") for mode in ("L", "RGB", "CMYK")),
        encode_image(gradient_image(64, 48), "JPEG", progressive=True, exif=exif, icc_profile=bytes(300)),
        encode_image(gradient_image(24, 16), "JPEG", restart_marker_blocks=1),
        encode_image(gradient_image(24, 16), "WEBP"),
        encode_image(gradient_image(24, 16, "RGBA"), "WEBP", lossless=True, exif=exif),
        *(encode_image(frames[0], kind, **animated) for kind in ("PNG", "WEBP", "GIF")),
        encode_image(gradient_image(24, 16), "TIFF"),
    ]


def change_bytes(chance: random.Random, data: bytearray) -> bytes:
    """Change a few bytes."""
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def insert_extreme_number(chance: random.Random, data: bytearray) -> bytes:
    """Write an extreme number anywhere."""
    extreme = chance.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 4096, 65500])
    size = chance.choice([1, 2, 4])
    number = (extreme & (256**size - 1)).to_bytes(size, chance.choice(["big", "little"]))
    place = chance.randrange(len(data))
    return bytes(data[:place] + number + data[place + size :])


def delete_range(chance: random.Random, data: bytearray) -> bytes:
    """Delete a range."""
    start, end = sorted((chance.randrange(len(data)), chance.randrange(len(data))))
    return bytes(data[:start] + data[end:])


def repeat_range(chance: random.Random, data: bytearray) -> bytes:
    """Repeat a range many times."""
    start, end = sorted((chance.randrange(len(data)), chance.randrange(len(data))))
    return bytes(data[:end] + data[start:end] * chance.randint(1, 200) + data[end:])


MUTATIONS: tuple[Mutation, ...] = (change_bytes, insert_extreme_number, delete_range, repeat_range)


def fix_checksums(data: bytes) -> bytes:
    """The PNG with valid checksums, so that the content of its chunks is decoded."""
    whole, place = bytearray(data), _SIGNATURE
    while place + 12 <= len(whole):
        (length,) = struct.unpack_from(">I", whole, place)
        end = place + 8 + length
        if end + 4 > len(whole):
            break
        struct.pack_into(">I", whole, end, zlib.crc32(whole[place + 4 : end]))
        place = end + 4
    return bytes(whole)


def mutants(seed: int) -> Iterator[bytes]:
    """An endless sequence of damaged files, determined by the seed."""
    chance, whole = random.Random(seed), seed_files()
    while True:
        data = chance.choice(whole)
        for _ in range(chance.randint(1, 3)):
            data = chance.choice(MUTATIONS)(chance, bytearray(data))[:MAX_BYTES] or b"\0"
        if data.startswith(b"\x89PNG") and chance.random() < 0.8:
            data = fix_checksums(data)
        yield data


def decode(decoders: DecoderPool, data: bytes) -> str:
    """The outcome of decoding a file, in a word; raises if it is not an allowed one."""
    deaths, began = decoders.deaths, time.monotonic()
    try:
        decoders.of(LOCAL).canonical(data)
        outcome = "decoded"
    except (InvalidImage, ImageTooLarge) as failure:
        outcome = failure.code
    if decoders.deaths > deaths:
        raise AssertionError("a decoder died")
    if time.monotonic() - began > MAX_SECONDS:
        raise AssertionError(f"it took {time.monotonic() - began:.1f} s")
    return outcome


def main() -> None:
    """Run for the minutes named on the command line, and print the outcomes."""
    end, counts, seed = time.monotonic() + 60 * float(sys.argv[1]), dict[str, int](), random.randrange(2**32)
    decoders = DecoderPool(1)
    for data in mutants(seed):
        if time.monotonic() > end:
            break
        try:
            outcome = decode(decoders, data)
        except AssertionError as error:
            CRASH_FOLDER.mkdir(parents=True, exist_ok=True)
            (CRASH_FOLDER / f"{zlib.crc32(data):08x}").write_bytes(data)
            outcome = str(error)
        counts[outcome] = counts.get(outcome, 0) + 1
    decoders.stop()
    print(f"seed {seed}: {counts}")
    sys.exit(0 if counts.keys() <= {"decoded", "invalid_image", "image_too_large"} else 1)


if __name__ == "__main__":
    main()
