"""Whether the disk has space for a request: checked before anything of it is written."""

from __future__ import annotations

from service.state.backend import TenantBackend
from touchstone.errors import StorageFull

RETRY_SECONDS = 60


def check_disk_space(backend: TenantBackend, size: int = 0) -> None:
    """Raise `StorageFull` where fewer bytes than the reserve would be left after `size` more."""
    free = backend.blobs.free_bytes()
    if free is not None and free - size < backend.settings.disk_reserve:
        raise StorageFull(
            "the disk is nearly full, so nothing new is taken; try again later, or delete jobs",
            retry_after=RETRY_SECONDS,
        )
