"""A full disk, for this process only: the kernel refuses to let files grow beyond a limit."""

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
    """Limit files to `MAX_FILE_BYTES` bytes; what the tests themselves write is smaller."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def large_png() -> bytes:
    """An image larger than the limit: noise, which cannot be compressed."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    return encode_image(Image.fromarray(noise))
