"""The schema of the ledger: written, checked, migrated under a lock."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from touchstone.errors import StartError
from touchstone.ledger import schema
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Submission
from touchstone.ledger.schema import CURRENT, SCHEMA_KEY
from touchstone.settings import Settings


def test_first_use_writes_the_schema(ledger: Ledger, server: redis.Redis) -> None:
    ledger.schema.check()
    assert server.get(SCHEMA_KEY) == str(CURRENT)
    assert not server.exists("ts:schema:lock")
    ledger.schema.check()


def test_newer_schema_is_refused_in_words(ledger: Ledger, server: redis.Redis) -> None:
    server.set(SCHEMA_KEY, CURRENT + 1)
    with pytest.raises(StartError, match=rf"schema {CURRENT + 1}, .* up to {CURRENT}: start the newer"):
        ledger.schema.check()
    assert server.get(SCHEMA_KEY) == str(CURRENT + 1)


@pytest.mark.parametrize(
    ("written", "sentence"),
    [(schema.RESTORING, "restore it again"), ("two", "'two', which is no number")],
)
def test_schema_that_is_no_version_is_refused(
    ledger: Ledger, server: redis.Redis, written: str, sentence: str
) -> None:
    server.set(SCHEMA_KEY, written)
    with pytest.raises(StartError, match=sentence):
        ledger.schema.check()


def test_ledger_from_before_tenants_is_refused(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    job, _ = ledger.accept(submission)
    server.hdel(f"ts:job:{job.id}", "tenant")
    with pytest.raises(StartError, match="another TOUCHSTONE_HOME"):
        ledger.schema.check()
    server.delete(f"ts:job:{job.id}", "ts:all")
    server.hset("ts:registry", "mine", "[]")  # the key of models without tenants
    with pytest.raises(StartError, match="another TOUCHSTONE_HOME"):
        ledger.schema.check()


def claim_as_before_schemas(ledger: Ledger, submission: Submission, server: redis.Redis, jobs: int) -> None:
    """Have a worker of the version before schemas run so many jobs."""
    for _ in range(jobs):
        job, _ = ledger.accept(submission)
        assert ledger.claim(job.id, "old")
    server.delete("ts:runs:old")


def test_migration_notes_which_jobs_a_worker_runs(
    ledger: Ledger, submission: Submission, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "STEP_JOBS", 50)
    claim_as_before_schemas(ledger, submission, server, 200)
    ledger.schema.check()
    assert server.scard("ts:runs:old") == 200
    assert server.ttl("ts:runs:old") > 0
    for job in server.zrange("ts:leases", 0, -1):
        server.zadd("ts:leases", {job: 1})
    [one, *_] = ledger.reap().lost
    assert ledger.read(one).losses == 1  # lost together, not alone


def test_migration_lets_events_of_ended_jobs_be_cut(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    job, _ = ledger.accept(submission)
    ledger.cancel(job.id)
    server.delete("ts:uncut")
    ledger.schema.check()
    assert server.zrange("ts:uncut", 0, -1, withscores=True) == server.zrange(
        "ts:ended", 0, -1, withscores=True
    )
    assert server.zcard("ts:uncut") == 1


def test_migration_runs_in_bounded_steps(
    ledger: Ledger, submission: Submission, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "STEP_JOBS", 50)
    claim_as_before_schemas(ledger, submission, server, 200)
    server.config_resetstat()
    ledger.schema.check()
    calls = server.info("commandstats")["cmdstat_zscan"]["calls"]
    assert 2 <= calls <= 20


def test_one_process_migrates_while_others_wait(settings: Settings, server: redis.Redis) -> None:
    assert settings.redis_url
    ledgers = [Ledger(settings.redis_url, settings) for _ in range(8)]
    server.config_resetstat()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: one.schema.check(), ledgers))
    assert server.info("commandstats")["cmdstat_zscan"]["calls"] == 2  # one for each script
    for one in ledgers:
        one.close()


def test_process_that_waits_goes_on_once_the_lock_of_a_dead_one_has_expired(
    ledger: Ledger, server: redis.Redis
) -> None:
    server.set("ts:schema:lock", "dead", px=200)
    ledger.schema.check()
    assert server.get(SCHEMA_KEY) == str(CURRENT)


def test_waiting_for_a_migration_ends_in_words(
    ledger: Ledger, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "WAIT_SECONDS", 0.0)
    server.set("ts:schema:lock", "another")
    with pytest.raises(StartError, match="another process has been migrating"):
        ledger.schema.check()
    assert server.get("ts:schema:lock") == "another"


def test_process_that_lost_its_lock_writes_no_schema(
    ledger: Ledger, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ledger.scripts.run

    def steal(name: str, *args: str | float) -> object:
        if name == "schema/advance":
            server.set("ts:schema:lock", "another", px=200)
        return run(name, *args)

    monkeypatch.setattr(ledger.scripts, "run", steal)
    monkeypatch.setattr(schema, "WAIT_SECONDS", 0.0)
    with pytest.raises(StartError, match="another process"):
        ledger.schema.check()
    assert not server.exists(SCHEMA_KEY)
