"""The version of what the ledger holds: written at its first use, checked by every process at its start.

Fields that a reader may ignore need no new version; what it must not misunderstand does.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import redis

from touchstone.errors import StartError
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.scripts import Scripts

SCHEMA_KEY = "ts:schema"
RESTORING = "restoring"
"""What is written in place of a version while a backup is restored."""

STEP_JOBS = 500
LOCK_MS = 30_000
CHECK_SECONDS = 0.1
WAIT_SECONDS = 600.0

_LOCK_KEY = "ts:schema:lock"


MIGRATIONS: Sequence[Sequence[str]] = (("schema/from_0_runs", "schema/from_0_events"),)
"""For each version the scripts that lead to the next; 0 is that of ledgers from before there were versions.
Each script is called until it returns '0', with the position that it returned before. A call takes a bounded
number of records, and may be repeated.
"""

CURRENT = len(MIGRATIONS)
"""The version that this code reads and writes."""


class Schema:
    """The version of one ledger."""

    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._client = client
        self._scripts = scripts

    def check(self) -> None:
        """Bring the ledger to the current version, or wait while another process does. Raises `StartError`
        where it has a newer one, or one that cannot be read.
        """
        token, end = secrets.token_hex(8), time.monotonic() + WAIT_SECONDS
        while (found := self.read()) < CURRENT:
            if self._take_lock(token):
                self._migrate(token)
            elif time.monotonic() > end:
                raise StartError(
                    f"another process has been migrating the ledger from schema {found} for "
                    f"{WAIT_SECONDS:g} s; wait for its end, and start again"
                )
            else:
                time.sleep(CHECK_SECONDS)
        if found > CURRENT:
            raise StartError(refuse_newer("the ledger", found, CURRENT))

    def read(self) -> int:
        """The version that is written, or 0; raises `StartError` where the ledger cannot be read at all."""
        written = str(self._scripts.run("schema/look"))
        if written == RESTORING:
            raise StartError(
                "a backup was being restored into this ledger, and that did not end; empty the ledger and "
                "restore it again, with `touchstone restore`"
            )
        if written == "-1":
            raise StartError(
                "the ledger holds jobs or models of a version before 0.1.0, whose files this version would "
                "delete; finish them with that version, or start with another TOUCHSTONE_HOME"
            )
        if not written.isdigit():
            raise StartError(
                f"the ledger's schema is {written[:40]!r}, which is no number; restore a backup, or start "
                "the version of Touchstone that wrote it"
            )
        return int(written)

    def _take_lock(self, token: str) -> bool:
        with map_redis_errors():
            return bool(self._client.set(_LOCK_KEY, token, nx=True, px=LOCK_MS))

    def _migrate(self, token: str) -> None:
        """Migrate as far as this process keeps the lock. Another one that has taken it begins again, which
        does no harm: every step may be repeated.
        """
        try:
            for version in range(self.read(), CURRENT):
                for script in MIGRATIONS[version]:
                    self._run_steps(script, token)
                if not self._scripts.run("schema/advance", token, version + 1):
                    return
        finally:
            self._scripts.run("schema/release", token)

    def _run_steps(self, script: str, token: str) -> None:
        """Run all steps; stops early where the lock was lost."""
        position = "0"
        while self._scripts.run("schema/hold", token, LOCK_MS):
            position = str(self._scripts.run(script, position, STEP_JOBS))
            if position == "0":
                return


def refuse_newer(what: str, found: int, known: int) -> str:
    """The sentence for something that a newer version of Touchstone wrote."""
    return (
        f"{what} has schema {found}, written by a newer version of Touchstone; this one reads schemas up to "
        f"{known}: start the newer version, or restore a backup that was made before the upgrade (see "
        '"Upgrade and rollback" in docs/operations.md)'
    )
