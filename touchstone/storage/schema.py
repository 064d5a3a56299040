"""The version of the layout of blobs, and the check of a process's data at its start."""

from __future__ import annotations

from touchstone.errors import StartError, StorageFull
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.schema import refuse_newer
from touchstone.logs import get_logger
from touchstone.storage.blobs import Blobs

CURRENT = 1

_log = get_logger("schema")


def check_schemas(ledger: Ledger, blobs: Blobs) -> None:
    """Raise `StartError` where a newer version of Touchstone wrote the ledger or the blobs; an older ledger
    is migrated. Blobs that cannot be read at the moment are no reason not to start.
    """
    ledger.schema.check()
    try:
        found = blobs.schema_version(CURRENT)
    except (OSError, StorageFull) as error:
        _log.warning("the blobs' schema was not checked", reason=str(error))
        return
    if found > CURRENT:
        raise StartError(refuse_newer("the storage of blobs", found, CURRENT))
