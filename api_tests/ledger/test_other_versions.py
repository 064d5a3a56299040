"""Records that another version wrote: unknown fields are ignored, and what cannot be read spoils nothing."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from pydantic import ValidationError

from api_tests.support.fake_service import MODEL_PROBE, sample_manifest
from touchstone.errors import UnknownJob, UnreadableJob
from touchstone.ledger import codec, losses
from touchstone.ledger.api_keys import KeyRequest
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Artifact, Job, Submission
from touchstone.ledger.tenant_ledger import TenantLedger

NEWER: dict[str, Any] = {"of_a_newer_version": [1]}


@pytest.fixture
def local(ledger: Ledger) -> TenantLedger:
    return TenantLedger.of(ledger, "local")


def add_to_json(server: redis.Redis, key: str, field: str, **changes: Any) -> None:
    """Change a JSON object in a hash."""
    stored = json.loads(str(server.hget(key, field)))
    server.hset(key, field, json.dumps(stored | changes))


def spoil(server: redis.Redis, job: Job) -> None:
    """Write a job as a newer version might."""
    add_to_json(server, f"ts:job:{job.id}", "submission", kind="of a newer version")


def test_unknown_fields_of_a_job_are_ignored(ledger: Ledger, job: Job, server: redis.Redis) -> None:
    claimed = ledger.claim(job.id, "w1")
    assert claimed
    file = Artifact(digest="sha256:" + "2" * 64, media_type="image/png", size=1)
    ledger.finish(job.id, claimed.claims, status="succeeded", result={}, artifacts={"a.png": file})
    before = ledger.read(job.id)
    key = f"ts:job:{job.id}"
    add_to_json(server, key, "submission", **NEWER, image={**job.submission.image.model_dump(), **NEWER})
    add_to_json(server, key, "artifacts", **{"a.png": {**file.model_dump(), **NEWER}})
    server.hset(key, mapping={"of_a_newer_version": "1", "timings": json.dumps({"queued": 1} | NEWER)})
    read = ledger.read(job.id)
    assert (read.submission, read.artifacts) == (before.submission, before.artifacts)
    assert read.timings
    assert read.timings.queued == 1


def test_unknown_fields_of_a_model_are_ignored(local: TenantLedger, server: redis.Redis) -> None:
    manifest = sample_manifest().model_copy(update={"id": "mine"})
    local.versions.register(manifest, MODEL_PROBE)
    key = f"ts:version:local:mine:{manifest.digest}"
    add_to_json(server, key, "card", **NEWER, input={**manifest.input.model_dump(), **NEWER})
    [version] = local.versions.read(local.versions.of("mine"))
    assert version.manifest == manifest
    assert local.versions.register(manifest, MODEL_PROBE)


def test_users_still_may_not_send_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        KeyRequest.model_validate({"name": "mine"} | NEWER)


def test_job_that_cannot_be_read_is_left_out_of_lists(
    ledger: Ledger,
    local: TenantLedger,
    submission: Submission,
    server: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Mock()
    monkeypatch.setattr(codec, "_log", log)
    jobs = [ledger.accept(submission)[0] for _ in range(3)]
    spoil(server, jobs[1])
    for _ in range(2):
        assert [job.id for job in local.find().jobs] == [jobs[2].id, jobs[0].id]
    with pytest.raises(UnreadableJob, match="another version of Touchstone"):
        local.read(jobs[1].id)
    with pytest.raises(UnknownJob, match="there is no job"):
        TenantLedger.of(ledger, "other").read(jobs[1].id)
    log.warning.assert_called_once_with("a record cannot be read", kind="job", id=jobs[1].id, reason="kind")
    local.delete(jobs[1].id)


def test_model_that_cannot_be_read_is_left_out_of_lists(local: TenantLedger, server: redis.Redis) -> None:
    for name in ("one", "two"):
        local.versions.register(sample_manifest().model_copy(update={"id": name}), MODEL_PROBE)
    key = f"ts:version:local:one:{sample_manifest().digest}"
    add_to_json(server, key, "card", kind="of a newer version")
    refs = [ref for one in local.versions.all().values() for ref in one]
    assert [version.ref.id for version in local.versions.read(refs)] == ["two"]
    server.hset("ts:registry:local", "one", "[")
    assert list(local.versions.all()) == ["two"]


def test_delivery_that_cannot_be_read_is_left_out_of_lists_and_keeps_no_other_back(
    ledger: Ledger, local: TenantLedger, server: redis.Redis
) -> None:
    for number in range(2):
        local.endpoints.add(f"https://{number}.example", ("job.failed",), description="", secret="s" * 32)
    deliveries = [local.endpoints.ping(one.id) for one in local.endpoints.all()]
    server.hset(f"ts:delivery:{deliveries[0].id}", "status", "of a newer version")
    assert [one.id for one in local.deliveries.find()[0]] == [deliveries[1].id]
    assert [one.delivery.id for one in ledger.outbox.claim({})] == [deliveries[1].id]


def test_endpoint_and_key_that_cannot_be_read_are_left_out_of_lists(
    ledger: Ledger, local: TenantLedger, server: redis.Redis
) -> None:
    endpoints = [
        local.endpoints.add("https://a.example", ("job.failed",), description="", secret="s" * 32)
        for _ in range(2)
    ]
    add_to_json(server, "ts:webhooks:local", endpoints[0].id, events=["of a newer version"])
    assert [one.id for one in local.endpoints.all()] == [endpoints[1].id]
    keys = [ledger.keys.create(KeyRequest(name="mine")).key for _ in range(2)]
    server.hset(f"ts:access:{keys[0].id}", "scope", "of a newer version")
    assert [one.id for one in ledger.keys.all()] == [keys[1].id]


def test_worker_that_cannot_read_a_job_gives_it_back_and_takes_the_next(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    jobs = [ledger.accept(submission)[0] for _ in range(3)]
    for job in jobs[:2]:
        spoil(server, job)
    claimed = ledger.claim(jobs[0].id, "w1")
    assert claimed
    assert claimed.id == jobs[2].id
    assert ledger.claim(jobs[0].id, "w1") is None
    for job in jobs[:2]:
        assert server.hmget(f"ts:job:{job.id}", "status", "attempts", "claims") == ["queued", "0", "1"]
    assert ledger.count_ahead(jobs[0].id) == 0
    assert server.smembers("ts:runs:w1") == {claimed.id}
    assert ledger.reap().to_dispatch == ()


def test_job_that_was_set_aside_waits_for_another_worker(
    ledger: Ledger, job: Job, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "ASIDE_MS", -1)  # the time has passed
    kind = job.submission.kind
    spoil(server, job)
    assert ledger.claim(job.id, "old") is None
    add_to_json(server, f"ts:job:{job.id}", "submission", kind=kind)  # the next worker can read it
    assert ledger.claim(job.id, "new") is None
    assert ledger.reap().to_dispatch == (job.id,)
    claimed = ledger.claim(job.id, "new")
    assert claimed
    assert (claimed.id, claimed.attempts, claimed.losses) == (job.id, 1, 0)


def test_suspect_that_was_set_aside_returns_to_its_level(
    ledger: Ledger, job: Job, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "ASIDE_MS", -1)
    kind = job.submission.kind
    assert ledger.claim(job.id, "w1")
    ledger.losses.lose("w1")
    spoil(server, job)
    assert ledger.claim("", "old", level=3) is None
    assert ledger.losses.count_waiting() == {}
    add_to_json(server, f"ts:job:{job.id}", "submission", kind=kind)
    ledger.reap()
    assert ledger.losses.count_waiting() == {3: 1}
    assert ledger.claim("", "new", level=3)


def test_job_that_was_set_aside_can_be_canceled_and_deleted(
    ledger: Ledger, job: Job, server: redis.Redis
) -> None:
    spoil(server, job)
    assert ledger.claim(job.id, "old") is None
    [answer] = ledger.cancel_all([job.id])
    assert answer.status == "canceled"
    ledger.delete(job.id)
    assert not list(server.scan_iter("ts:line:*"))
    assert not server.exists("ts:status:queued", "ts:bells", f"ts:job:{job.id}")
