"""A ledger and blobs of the version before schemas, recorded by `api_tests.backup.recorded_ledger`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from api_tests.backup.recorded_ledger import ADVERSARIAL, OLD_WORKER, PNG, WEIGHTS
from api_tests.support.in_process_worker import InProcessWorker
from touchstone.backup.backup import LEDGER_FILE, read_description, restore_backup
from touchstone.backup.ledger_file import read_file, write_keys
from touchstone.digests import digest_of
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Submission
from touchstone.ledger.schema import CURRENT, SCHEMA_KEY
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs

RECORDED = Path(__file__).parent / "schema_0"


@pytest.fixture
def upgraded(settings: Settings, server: redis.Redis) -> Iterator[Ledger]:
    """The recorded ledger, in place, as a process of this version finds it at its start."""
    write_keys(server, read_file(RECORDED / LEDGER_FILE))
    settings = settings.model_copy(update={"webhook_days": 100_000})  # it was recorded long ago
    ledger = Ledger(str(settings.redis_url), settings)
    ledger.schema.check()
    yield ledger
    ledger.close()


def read_jobs(ledger: Ledger) -> dict[str, list[str]]:
    """Ids of all jobs of both tenants by status, oldest first."""
    found: dict[str, list[str]] = {}
    for tenant in ("other", "local"):
        for job in reversed(TenantLedger.of(ledger, tenant).find().jobs):
            found.setdefault(job.status, []).append(job.id)
    return found


def test_recorded_ledger_is_of_schema_0_and_small() -> None:
    assert read_description(RECORDED).ledger_schema == 0
    assert sum(file.stat().st_size for file in RECORDED.rglob("*") if file.is_file()) < 100_000


def test_everything_is_read_after_the_upgrade(upgraded: Ledger, server: redis.Redis) -> None:
    jobs = read_jobs(upgraded)
    counts = {status: len(ids) for status, ids in jobs.items()}
    assert counts == {"queued": 2, "running": 3, "succeeded": 1, "failed": 1, "canceled": 1}
    ended = upgraded.read(jobs["succeeded"][0])
    assert ended.result == {"outcome": "success"}
    assert ended.artifacts["adversarial.png"].digest == digest_of(ADVERSARIAL)
    failed = upgraded.read(jobs["failed"][0]).error
    assert failed
    assert failed.code == "non_finite_output"
    local = TenantLedger.of(upgraded, "local")
    [version] = local.versions.read(local.versions.of("mine"))
    assert version.manifest.digest == digest_of(WEIGHTS)
    assert [key.scope for key in upgraded.keys.all()] == ["admin"]
    assert upgraded.quotas.of("other").waiting == 7
    assert len(local.deliveries.find()[0]) == len(upgraded.outbox.claim({})) == 1
    assert server.get(SCHEMA_KEY) == str(CURRENT)


def test_jobs_that_ran_during_the_upgrade_are_lost_together_with_their_worker(
    upgraded: Ledger, server: redis.Redis
) -> None:
    running = read_jobs(upgraded)["running"]
    assert server.smembers(f"ts:runs:{OLD_WORKER}") == set(running)
    assert set(upgraded.reap().lost) == set(running)
    assert {upgraded.read(job).losses for job in running} == {1}


def test_events_of_earlier_jobs_are_cut_and_all_can_be_deleted(upgraded: Ledger, server: redis.Redis) -> None:
    jobs = read_jobs(upgraded)
    ended = [*jobs["succeeded"], *jobs["failed"], *jobs["canceled"]]
    before = [event.type for event in upgraded.events(ended[0])]
    server.zadd("ts:uncut", dict.fromkeys(ended, 1))
    assert upgraded.retention.cut_events() == 3
    assert [event.type for event in upgraded.events(ended[0])] == [
        kind for kind in before if kind in ("status", "completed")
    ]
    for job in jobs["running"]:
        upgraded.release(job, 1)
    for ids in jobs.values():
        for job in ids:
            upgraded.delete(job)
    assert set(server.hkeys("ts:references")) == {digest_of(WEIGHTS)}


def test_recorded_ledger_is_restored_into_an_empty_home_and_its_jobs_run(
    settings: Settings, submission: Submission, server: redis.Redis
) -> None:
    restore_backup(settings, str(settings.redis_url), RECORDED)
    assert {open_blobs(settings).get(digest_of(data)) for data in (PNG, WEIGHTS, ADVERSARIAL)} == {
        PNG,
        WEIGHTS,
        ADVERSARIAL,
    }
    worker = InProcessWorker(settings, submission, str(settings.redis_url))
    try:
        queued = read_jobs(worker.ledger)["queued"]
        assert len(queued) == 5
        for job in queued:
            worker.runner(job)
        assert all(worker.ledger.read(job).status == "succeeded" for job in queued)
    finally:
        worker.close()
