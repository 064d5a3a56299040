"""A disk without room, for this process alone: the kernel stops a file in the midst of a write."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from api_tests.support.fake_service import encode_image

MAX_FILE_BYTES = 200_000


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can have more than `MAX_FILE_BYTES` bytes; what the tests themselves write is less."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def large_png() -> bytes:
    """An image for which there is no room: noise, which cannot be compressed."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    return encode_image(Image.fromarray(noise))
