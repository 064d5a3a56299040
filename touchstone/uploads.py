"""What becomes of an upload: the canonical PNG that a job works on, and what a submission says of it."""

from __future__ import annotations

from touchstone.images import decode, encode
from touchstone.ledger.records import ImageRef
from touchstone.storage.blobs import digest_of


def canonical(upload: bytes) -> tuple[bytes, ImageRef]:
    """The upload's pixels as a PNG without metadata, and its reference; raises as `images.decode` does."""
    decoded = decode(upload)
    png = encode(decoded.pixels)
    height, width, channels = decoded.pixels.shape
    image = ImageRef(
        digest=digest_of(png), width=width, height=height, channels=channels, conversions=decoded.conversions
    )
    return png, image
