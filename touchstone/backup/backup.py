"""A backup: a folder with the ledger's keys, the blobs that they name, and a description, written last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from touchstone.backup.ledger_file import find_key, read_file, read_keys, write_file, write_keys
from touchstone.backup.snapshot import ANSWER_SECONDS, open_snapshot
from touchstone.errors import InvalidParameter, StartError, UnknownArtifact
from touchstone.ledger.connection import connect, map_redis_errors
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.schema import CURRENT, RESTORING, SCHEMA_KEY, Schema, refuse_newer
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings
from touchstone.storage import schema as blobs_schema
from touchstone.storage.blobs import Blobs, FolderBlobs, open_blobs
from touchstone.storage.local import sync_file

FORMAT = 1
DESCRIPTION = "backup.json"
LEDGER_FILE = "ledger.jsonl.gz"
BLOBS_FOLDER = "blobs"
_CHUNK_BYTES = 8 * 2**20
_FUTURE_SECONDS = -86_400.0
"""So that a clock that was set back hides no blob."""

ReportLine = Callable[[str], None]


class Backup(BaseModel):
    """The description of a backup; without it, the folder is none."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int
    touchstone: str
    made_at: datetime
    ledger_schema: int
    blobs_schema: int
    keys: int
    ledger_digest: str
    blobs: dict[str, int]
    """Digests and bytes."""
    missing: tuple[str, ...] = ()
    """Blobs that the ledger names and that were not found."""


def create_backup(settings: Settings, url: str, folder: Path) -> Backup:
    """Copy the ledger at `url` as it is now, then the blobs that it names, while the service goes on: blobs
    that it deletes from now on are kept for ten minutes. Raises `InvalidParameter` where the folder has
    anything.
    """
    _make_folder(folder)
    with open_snapshot(url, folder) as client:
        found = Schema(client, Scripts(client)).read()
        if found > CURRENT:
            raise StartError(refuse_newer("the ledger", found, CURRENT))
        keys = write_file(folder / LEDGER_FILE, read_keys(client))
        with map_redis_errors():
            digests: Any = client.hkeys("ts:references")
    blobs, missing = _copy_blobs(open_blobs(settings), FolderBlobs(folder / BLOBS_FOLDER), sorted(digests))
    backup = Backup(
        format=FORMAT,
        touchstone=version("touchstone-robustness"),
        made_at=datetime.now(UTC),
        ledger_schema=found,
        blobs_schema=blobs_schema.CURRENT,
        keys=keys,
        ledger_digest=_digest_file(folder / LEDGER_FILE),
        blobs=blobs,
        missing=missing,
    )
    _write_description(folder, backup)
    return backup


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if next(folder.iterdir(), None) is not None:
        raise InvalidParameter(f"{folder} is not empty; name a new folder for the backup")
    folder.chmod(0o700)  # hashes of keys and secrets of webhooks are in the ledger


def _write_description(folder: Path, backup: Backup) -> None:
    """Write the description once all else is on the disk."""
    partial = folder / f".{DESCRIPTION}"
    partial.write_text(backup.model_dump_json(indent=1), "utf-8")
    for path in (folder / LEDGER_FILE, partial):
        sync_file(path)
    partial.rename(folder / DESCRIPTION)
    sync_file(folder)


def _copy_blobs(
    source: Blobs, target: Blobs, digests: Iterable[str]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Copy blobs, and return the bytes of each, and which are missing."""
    copied: dict[str, int] = {}
    missing: list[str] = []
    for digest in digests:
        try:
            copied[digest] = _copy_blob(source, target, digest)
        except UnknownArtifact:
            missing.append(digest)
    return copied, tuple(missing)


def _copy_blob(source: Blobs, target: Blobs, digest: str) -> int:
    """Copy a blob in pieces, and return its bytes; `UnknownArtifact` where it is missing or damaged."""
    path = target.incoming_folder() / f"copy-{os.getpid()}-{digest.removeprefix('sha256:')}"
    hashed, size, whole = hashlib.sha256(), 0, source.size(digest)
    try:
        with path.open("wb") as file:
            while size < whole and (data := source.read(digest, size, _CHUNK_BYTES)):
                file.write(data)
                hashed.update(data)
                size += len(data)
        if f"sha256:{hashed.hexdigest()}" != digest:
            raise UnknownArtifact(f"the bytes of {digest} are damaged")
        target.put_file(path, digest)
    finally:
        path.unlink(missing_ok=True)
    return size


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def read_description(folder: Path) -> Backup:
    """The description of a backup. Raises `InvalidParameter` where there is none, or its ledger was altered,
    and `StartError` where a newer version of Touchstone made it.
    """
    try:
        backup = Backup.model_validate(json.loads((folder / DESCRIPTION).read_text("utf-8")))
    except FileNotFoundError:
        raise InvalidParameter(
            f"{folder} has no {DESCRIPTION}: it is no backup, or one that was not finished"
        ) from None
    except (ValidationError, ValueError):
        raise InvalidParameter(f"{folder / DESCRIPTION} is damaged; use another backup") from None
    for what, found, known in (
        ("the backup's format", backup.format, FORMAT),
        ("the backup's ledger", backup.ledger_schema, CURRENT),
        ("the backup's blobs", backup.blobs_schema, blobs_schema.CURRENT),
    ):
        if found > known:
            raise StartError(refuse_newer(what, found, known))
    if _digest_file(folder / LEDGER_FILE) != backup.ledger_digest:
        raise InvalidParameter(f"{folder / LEDGER_FILE} is damaged; use another backup")
    return backup


def restore_backup(settings: Settings, url: str, folder: Path) -> Backup:
    """Fill an empty ledger at `url` and empty blobs from a backup; jobs that ran are queued again. Raises
    `InvalidParameter` where either is not empty, or where a file of the backup was altered.
    """
    backup, blobs = read_description(folder), open_blobs(settings)
    with connect(url, answer_seconds=ANSWER_SECONDS) as client:
        _check_empty(client, blobs)
        _, missing = _copy_blobs(FolderBlobs(folder / BLOBS_FOLDER), blobs, backup.blobs)
        if missing:
            raise InvalidParameter(
                f"{len(missing):,} files of the backup are missing or damaged, first {missing[0]}; use "
                "another backup, and an empty home"
            )
        with map_redis_errors():
            client.set(SCHEMA_KEY, RESTORING)
        write_keys(client, read_file(folder / LEDGER_FILE))
        ledger = Ledger(url, settings)
        try:
            _queue_running_jobs(ledger)
            with map_redis_errors():
                client.set(SCHEMA_KEY, backup.ledger_schema)
            ledger.schema.check()
        finally:
            ledger.close()
    return backup


def _check_empty(client: redis.Redis, blobs: Blobs) -> None:
    if key := find_key(client):
        raise InvalidParameter(
            f"the ledger is not empty: it has the key {key[:100]!r}; restore into a new TOUCHSTONE_HOME, or "
            "another database"
        )
    if blob := next(blobs.list_older_than(_FUTURE_SECONDS), None):
        raise InvalidParameter(
            f"the storage of blobs is not empty: it has {blob}; restore into a new TOUCHSTONE_HOME, or "
            "another bucket"
        )


def _queue_running_jobs(ledger: Ledger) -> None:
    """Give back all jobs that a worker had: none has them here."""
    with map_redis_errors():
        running: Any = ledger.client.zrange("ts:leases", 0, -1)
    for job in running:
        with map_redis_errors():
            claims: Any = ledger.client.hget(f"ts:job:{job}", "claims")
        ledger.release(job, claims)
