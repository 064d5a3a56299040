"""Values of records that are too large for the ledger: they are blobs, of which the ledger holds the digests.

Such blobs are referenced and counted like the files of a job or a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from touchstone.digests import digest_of
from touchstone.errors import UnknownArtifact
from touchstone.ledger.records import MAX_VALUE_BYTES, Job, LargeValue
from touchstone.ledger.sized_cache import SizedCache
from touchstone.logs import get_logger

CACHE_LETTERS = 8 * 2**20
"""Of the values that a process keeps: lists and streams read the same ones again."""

_log = get_logger("ledger")


class BlobStore(Protocol):
    """Bytes by digest, as `touchstone.storage.blobs.Blobs` has them."""

    def put(self, data: bytes) -> str:
        """Store bytes durably before returning their digest."""

    def get(self, digest: str) -> bytes:
        """All bytes of a blob; a missing one raises `UnknownArtifact`."""


def encode_value(value: Any) -> str:
    """A value as JSON; raises TypeError and ValueError where JSON cannot express it."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def measure(text: str) -> LargeValue | None:
    """The blob that an encoded value has to become; None for one that the ledger holds itself."""
    if len(text) * 4 <= MAX_VALUE_BYTES:
        return None
    data = text.encode()
    return LargeValue(digest=digest_of(data), size=len(data)) if len(data) > MAX_VALUE_BYTES else None


def encode_reference(value: LargeValue | None) -> str:
    """A reference as the ledger holds it, '' for none."""
    return f"{value.digest} {value.size}" if value else ""


def decode_reference(text: str) -> LargeValue:
    """What `encode_reference` wrote."""
    digest, size = text.split()
    return LargeValue(digest=digest, size=int(size))


class LargeValues:
    """Writes and reads large values; without blobs, none can be."""

    def __init__(self, blobs: BlobStore | None) -> None:
        self._blobs = blobs
        self._cache = SizedCache[str, str](CACHE_LETTERS)

    def put(self, text: str) -> LargeValue | None:
        """Store an encoded value, if it is large. Raises `StorageFull`."""
        large = measure(text)
        if large is not None:
            if self._blobs is None:
                raise TypeError("this ledger was opened without blobs, and has no place for large values")
            self._blobs.put(text.encode())
        return large

    def keep_result(self, result: Mapping[str, Any]) -> Mapping[str, Any] | LargeValue:
        """The result as `Ledger.finish` takes it: a large one is stored. Raises `StorageFull`, and TypeError
        or ValueError where JSON cannot express the result.
        """
        return self.put(encode_value(result)) or result

    def get(self, large: LargeValue) -> str:
        """An encoded value; `UnknownArtifact` where its blob is missing."""
        known = self._cache.get(large.digest)
        if known is not None:
            return known
        if self._blobs is None:
            raise UnknownArtifact("this ledger was opened without blobs, and cannot read large values")
        text = self._blobs.get(large.digest).decode()
        self._cache.put(large.digest, text, len(text))
        return text

    def complete(self, job: Job) -> Job:
        """The job with its large values. One whose blob is missing is left out, so that it spoils no list."""
        if not job.large:
            return job
        found = {name: self._find(job.id, name, large) for name, large in job.large.items()}
        changes: dict[str, Any] = {"large": {}}
        if "parameters" in found:
            changes["submission"] = job.submission.model_copy(
                update={"parameters": found["parameters"] or {}}
            )
        if "result" in found:
            changes["result"] = found["result"]
        return job.model_copy(update=changes)

    def _find(self, job: str, name: str, large: LargeValue) -> Any:
        try:
            return json.loads(self.get(large))
        except UnknownArtifact as missing:
            _log.warning("a value of a job is missing", job=job, value=name, reason=missing.detail)
            return None
