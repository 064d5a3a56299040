"""Backup and restore: what a service had, on an empty machine."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from api_tests.support.fake_service import MODEL_PROBE, sample_manifest
from api_tests.support.in_process_worker import InProcessWorker
from api_tests.support.wait import wait_until
from touchstone.backup import backup
from touchstone.backup.backup import create_backup, restore_backup
from touchstone.digests import digest_of
from touchstone.errors import InvalidParameter, StartError
from touchstone.ledger.api_keys import KeyRequest
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Submission
from touchstone.ledger.schema import CURRENT, RESTORING, SCHEMA_KEY
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs

FILE = b"weights"


@pytest.fixture
def worker(settings: Settings, submission: Submission) -> Iterator[InProcessWorker]:
    """A worker on the ledger that is backed up."""
    worker = InProcessWorker(settings, submission, str(settings.redis_url))
    yield worker
    worker.close()


@pytest.fixture
def elsewhere(settings: Settings, tmp_path: Path) -> Settings:
    """Settings of another, empty home; the ledger is emptied with `clear`."""
    return settings.model_copy(update={"home": tmp_path / "elsewhere"})


def read_all(server: redis.Redis) -> dict[str, Any]:
    """Every key of the ledger with its value, but for what is true of the present processes only."""
    known = [name for name in server.scan_iter("ts:*") if name not in ("ts:reaped", SCHEMA_KEY)]
    return {name: server.dump(name) for name in known}


def make_backup(settings: Settings, folder: Path) -> backup.Backup:
    return create_backup(settings, str(settings.redis_url), folder)


def restore(settings: Settings, folder: Path) -> backup.Backup:
    return restore_backup(settings, str(settings.redis_url), folder)


def test_restored_service_has_jobs_results_models_and_keys_and_goes_on(
    worker: InProcessWorker, elsewhere: Settings, server: redis.Redis, submission: Submission, tmp_path: Path
) -> None:
    ledger, blobs = worker.ledger, worker.blobs
    ledger.schema.check()
    ended = worker.run()
    waiting = worker.accept()
    running = ledger.claim(waiting, "w2")
    assert running
    waiting = worker.accept(steps=2)
    manifest = sample_manifest().model_copy(update={"id": "mine", "digest": blobs.put(FILE)})
    versions = TenantLedger.of(ledger, "local").versions
    versions.register(manifest, MODEL_PROBE, size=len(FILE))
    key = ledger.keys.create(KeyRequest(name="mine")).text
    ledger.events(ended.id)
    made = make_backup(worker.settings, tmp_path / "backup")
    assert made.ledger_schema == CURRENT
    assert not made.missing
    later = worker.accept()

    server.flushall()
    assert restore(elsewhere, tmp_path / "backup") == made
    other = InProcessWorker(elsewhere, submission, str(elsewhere.redis_url))
    try:
        assert other.ledger.read(ended.id) == ended
        assert [event.type for event in other.ledger.events(ended.id)][-1] == "completed"
        file = ended.artifacts["adversarial.png"]
        assert digest_of(other.blobs.get(file.digest)) == file.digest
        assert other.ledger.keys.check(key).name == "mine"
        [version] = TenantLedger.of(other.ledger, "local").versions.of("mine")
        assert other.blobs.get(version.digest) == FILE
        again = other.ledger.read(running.id)
        assert (again.status, again.attempts, again.losses) == ("queued", 0, 0)
        assert later not in [job.id for job in TenantLedger.of(other.ledger, "local").find().jobs]
        dispatched: set[str] = set()
        wait_until(lambda: dispatched.update(other.ledger.reap().to_dispatch) or len(dispatched) == 2)
        assert dispatched == {waiting, running.id}
        for job in (waiting, running.id):
            other.runner(job)
        for job in (waiting, running.id):
            assert other.ledger.read(job).status == "succeeded"
    finally:
        other.close()


def test_every_kind_of_key_is_restored_as_it_was(
    ledger: Ledger, settings: Settings, elsewhere: Settings, server: redis.Redis, tmp_path: Path
) -> None:
    ledger.schema.check()
    server.set("ts:a", "é", px=10**9)
    server.hset("ts:b", mapping={str(number): "x" for number in range(2500)})
    server.sadd("ts:c", *range(10))
    server.zadd("ts:d", {"a": 1e12 + 1, "b": 0.25, "c": -1})
    server.xadd("ts:e", {"type": "status", "data": "{}"}, id="1-1")
    server.rpush("ts:f", "b", "a")
    before, expiry = read_all(server), server.pexpiretime("ts:a")
    make_backup(settings, tmp_path / "backup")
    server.flushall()
    restore(elsewhere, tmp_path / "backup")
    after = read_all(server)
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} <= {"ts:b", "ts:c"}  # in another order
    assert (server.hlen("ts:b"), server.scard("ts:c")) == (2500, 10)
    assert server.pexpiretime("ts:a") == expiry


def test_what_belongs_to_present_processes_is_left_out(
    ledger: Ledger, settings: Settings, server: redis.Redis, tmp_path: Path
) -> None:
    ledger.schema.check()
    ledger.reap()
    ledger.workers.heartbeat("w1", {}, ["digits"])
    assert ledger.losses.may_quarantine("w1")
    ledger.retention.take_turn(60)
    server.lpush("touchstone", "a message")
    make_backup(settings, tmp_path)
    with gzip.open(tmp_path / "ledger.jsonl.gz", "rt") as file:
        assert [json.loads(line)[0] for line in file] == []


def test_backup_is_not_restored_over_anything(
    ledger: Ledger, settings: Settings, elsewhere: Settings, server: redis.Redis, tmp_path: Path
) -> None:
    ledger.schema.check()
    make_backup(settings, tmp_path / "backup")
    ledger.retention.ledger_id()
    with pytest.raises(InvalidParameter, match=r"ledger is not empty: it has the key 'ts:name'"):
        restore(elsewhere, tmp_path / "backup")
    server.flushall()
    open_blobs(elsewhere).put(FILE)
    with pytest.raises(InvalidParameter, match=r"storage of blobs is not empty: it has sha256:"):
        restore(elsewhere, tmp_path / "backup")
    with pytest.raises(InvalidParameter, match="is not empty; name a new folder"):
        make_backup(settings, tmp_path / "backup")


@pytest.fixture
def made(worker: InProcessWorker, server: redis.Redis, tmp_path: Path) -> Path:
    """A backup of one job, whose ledger is gone."""
    worker.ledger.schema.check()
    worker.run()
    make_backup(worker.settings, tmp_path / "backup")
    server.flushall()
    return tmp_path / "backup"


def test_altered_backup_is_refused_and_leaves_the_ledger_empty(
    made: Path, elsewhere: Settings, server: redis.Redis
) -> None:
    file = made / "ledger.jsonl.gz"
    data = file.read_bytes()
    file.write_bytes(data + b"x")
    with pytest.raises(InvalidParameter, match=r"ledger.jsonl.gz is damaged"):
        restore(elsewhere, made)
    file.write_bytes(data)
    blob = next(path for path in (made / "blobs").glob("??/*"))
    blob.write_bytes(b"other")
    with pytest.raises(InvalidParameter, match="1 files of the backup are missing or damaged"):
        restore(elsewhere, made)
    assert not server.dbsize()


def test_unfinished_backup_is_refused(made: Path, elsewhere: Settings) -> None:
    (made / "backup.json").unlink()
    with pytest.raises(InvalidParameter, match="one that was not finished"):
        restore(elsewhere, made)


@pytest.mark.parametrize("field", ["format", "ledger_schema", "blobs_schema"])
def test_backup_of_a_newer_version_is_refused(made: Path, elsewhere: Settings, field: str) -> None:
    described = json.loads((made / "backup.json").read_text())
    (made / "backup.json").write_text(json.dumps(described | {field: 99}))
    with pytest.raises(StartError, match="schema 99, written by a newer version"):
        restore(elsewhere, made)


def test_service_does_not_start_on_what_was_restored_in_part(
    made: Path, elsewhere: Settings, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_queue_running_jobs", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        restore(elsewhere, made)
    assert server.get(SCHEMA_KEY) == RESTORING


def test_missing_blob_is_named(worker: InProcessWorker, server: redis.Redis, tmp_path: Path) -> None:
    worker.ledger.schema.check()
    job = worker.run()
    lost = job.artifacts["adversarial.png"].digest
    worker.blobs.delete(lost)
    assert make_backup(worker.settings, tmp_path / "backup").missing == (lost,)
