"""Garbage collection: jobs expire, and blobs are deleted once no job or model holds them, not before."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import redis
from obstore.store import MemoryStore

from api_tests.support.fake_service import MODEL_PROBE
from touchstone.errors import UnknownArtifact, UnknownJob
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Artifact, Job, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models.zoo import manifests
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs, FolderBlobs, ObjectStoreBlobs, SetAside, digest_of, open_blobs
from touchstone.storage.garbage_collector import GarbageCollector

IMAGE, FILE, RESULT = b"an image", b"a file", b"a result"


@pytest.fixture(params=["folder", "store"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return FolderBlobs(tmp_path / "blobs")
    return ObjectStoreBlobs(MemoryStore(), tmp_path / "incoming")


@pytest.fixture
def collector(ledger: Ledger, blobs: Blobs) -> GarbageCollector:
    """One that sets aside in a round and drops in the next."""
    return GarbageCollector(ledger, blobs, aside_seconds=-1)


def with_image(submission: Submission, data: bytes) -> Submission:
    """The same, of another image."""
    assert submission.image
    image = submission.image.model_copy(update={"digest": digest_of(data)})
    return submission.model_copy(update={"image": image})


def with_file(submission: Submission, data: bytes, kind: str = "registration") -> Submission:
    changes = {"kind": kind, "image": None, "file": digest_of(data)}
    return Submission.model_validate({**submission.model_dump(), **changes})


def accept_job(ledger: Ledger, blobs: Blobs, submission: Submission, data: bytes) -> Job:
    blobs.put(data)
    return ledger.accept(submission)[0]


def finish_job(ledger: Ledger, blobs: Blobs, job: Job, *files: bytes) -> None:
    claimed = ledger.claim(job.id, "w")
    assert claimed
    artifacts = {
        f"{number}.png": Artifact(digest=blobs.put(data), media_type="image/png", size=len(data))
        for number, data in enumerate(files)
    }
    assert ledger.finish(job.id, claimed.claims, status="succeeded", artifacts=artifacts)


def age_ended_jobs(server: redis.Redis) -> None:
    """As if every job that has ended had done so a year ago."""
    for name, at in server.zrange("ts:ended", 0, -1, withscores=True):
        server.zadd("ts:ended", {name: at - 366 * 86_400_000})


def has_blob(blobs: Blobs, data: bytes) -> bool:
    try:
        return blobs.get(digest_of(data)) == data
    except UnknownArtifact:
        return False


def test_ended_job_expires_with_its_image_and_artifacts(
    ledger: Ledger, blobs: Blobs, collector: GarbageCollector, submission: Submission, server: redis.Redis
) -> None:
    blobs.put(IMAGE)
    job, _ = ledger.accept(with_image(submission, IMAGE), idempotency=("key", "digest"))
    finish_job(ledger, blobs, job, RESULT)
    collector.sweep()
    assert has_blob(blobs, IMAGE)
    assert has_blob(blobs, RESULT)
    age_ended_jobs(server)
    collector.sweep()
    with pytest.raises(UnknownJob):
        ledger.read(job.id)
    assert not has_blob(blobs, IMAGE)
    assert not has_blob(blobs, RESULT)
    assert sorted(server.keys()) == ["ts:name", "ts:seq", "ts:turn"]


def test_queued_or_running_job_never_expires(
    ledger: Ledger, blobs: Blobs, collector: GarbageCollector, submission: Submission, server: redis.Redis
) -> None:
    jobs = [accept_job(ledger, blobs, with_image(submission, IMAGE), IMAGE) for _ in range(2)]
    assert ledger.claim(jobs[0].id, "w")
    for job in jobs:
        server.hset(f"ts:job:{job.id}", "created_at", 1)
    collector.sweep()
    assert [ledger.read(job.id).status for job in jobs] == ["running", "queued"]
    assert has_blob(blobs, IMAGE)


def test_one_sweep_forgets_all_expired_jobs(
    ledger: Ledger,
    tmp_path: Path,
    submission: Submission,
    server: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("ledger.retention", "storage.garbage_collector"):
        monkeypatch.setattr(f"touchstone.{module}.EXPIRY_BATCH", 2)
    for _ in range(5):
        ledger.cancel(ledger.accept(submission)[0].id)
    age_ended_jobs(server)
    GarbageCollector(ledger, FolderBlobs(tmp_path)).sweep()
    assert TenantLedger.of(ledger, LOCAL).find().jobs == ()


def test_shared_blob_is_deleted_with_the_last_job_that_holds_it(
    ledger: Ledger, blobs: Blobs, collector: GarbageCollector, submission: Submission
) -> None:
    first, second, third = (accept_job(ledger, blobs, with_image(submission, IMAGE), IMAGE) for _ in range(3))
    finish_job(ledger, blobs, first, IMAGE, IMAGE)  # what the job leaves may be the image itself, twice
    for job in (second, third):
        ledger.cancel(job.id)
    for job in (third, first):
        ledger.delete(job.id)
        collector.sweep()
        assert has_blob(blobs, IMAGE)
    ledger.delete(second.id)
    collector.sweep()
    assert not has_blob(blobs, IMAGE)


def test_uploaded_file_is_deleted_when_its_job_ends(
    ledger: Ledger, blobs: Blobs, collector: GarbageCollector, submission: Submission
) -> None:
    job = accept_job(ledger, blobs, with_file(submission, FILE), FILE)
    collector.sweep()
    assert has_blob(blobs, FILE)
    finish_job(ledger, blobs, job)
    collector.sweep()
    assert not has_blob(blobs, FILE)
    assert ledger.read(job.id).submission.file == digest_of(FILE)
    ledger.delete(job.id)


def test_uploaded_file_is_deleted_with_its_queued_job(
    ledger: Ledger, blobs: Blobs, collector: GarbageCollector, submission: Submission
) -> None:
    ledger.delete(accept_job(ledger, blobs, with_file(submission, FILE), FILE).id)
    collector.sweep()
    assert not has_blob(blobs, FILE)


def test_model_version_keeps_its_file_until_it_is_deleted(
    ledger: Ledger, blobs: Blobs, collector: GarbageCollector, submission: Submission, server: redis.Redis
) -> None:
    job = accept_job(ledger, blobs, with_file(submission, FILE), FILE)
    manifest = next(iter(manifests().values())).model_copy(update={"id": "mine", "digest": digest_of(FILE)})
    for _ in range(2):
        TenantLedger.of(ledger, LOCAL).versions.register(manifest, MODEL_PROBE)
    ledger.probes.store(manifest.digest, MODEL_PROBE)
    ledger.query_budget(manifest.digest, 5, budget=None, rate=None, token="t")
    finish_job(ledger, blobs, job)
    ledger.delete(job.id)
    collector.sweep()
    assert has_blob(blobs, FILE)
    TenantLedger.of(ledger, LOCAL).versions.delete("mine")
    collector.sweep()
    assert not has_blob(blobs, FILE)
    assert not server.keys(f"ts:*{manifest.digest}")


def test_blob_set_aside_can_be_read_until_it_is_dropped(
    ledger: Ledger, blobs: Blobs, submission: Submission
) -> None:
    collector = GarbageCollector(ledger, blobs)
    ledger.delete(accept_job(ledger, blobs, with_image(submission, IMAGE), IMAGE).id)
    for _ in range(2):
        collector.sweep()
    assert [entry.digest for entry in blobs.list_set_aside()] == [digest_of(IMAGE)]
    assert blobs.get(digest_of(IMAGE)) == IMAGE
    assert blobs.read(digest_of(IMAGE), 3, 100) == IMAGE[3:]
    assert blobs.size(digest_of(IMAGE)) == len(IMAGE)


def test_blob_set_aside_after_a_put_is_kept_for_the_job_accepted_next(
    ledger: Ledger, blobs: Blobs, collector: GarbageCollector, submission: Submission
) -> None:
    ledger.delete(accept_job(ledger, blobs, with_image(submission, IMAGE), IMAGE).id)
    blobs.put(IMAGE)  # finds them stored, and then the collector runs
    GarbageCollector(ledger, blobs).sweep()
    ledger.accept(with_image(submission, IMAGE))
    assert has_blob(blobs, IMAGE)
    collector.sweep()  # long after
    assert has_blob(blobs, IMAGE)
    assert list(blobs.list_set_aside()) == []


def test_blob_held_again_is_not_set_aside(ledger: Ledger, blobs: Blobs, submission: Submission) -> None:
    ledger.delete(accept_job(ledger, blobs, with_image(submission, IMAGE), IMAGE).id)
    ledger.accept(with_image(submission, IMAGE))
    GarbageCollector(ledger, blobs).sweep()
    assert list(blobs.list_set_aside()) == []


def test_blob_put_again_survives_the_drop_of_the_one_set_aside(
    ledger: Ledger, blobs: Blobs, collector: GarbageCollector, submission: Submission
) -> None:
    ledger.delete(accept_job(ledger, blobs, with_image(submission, IMAGE), IMAGE).id)
    GarbageCollector(ledger, blobs).sweep()
    blobs.put(IMAGE)
    collector.sweep()  # drops what was set aside, and looks at nothing that has yet to be held
    ledger.accept(with_image(submission, IMAGE))
    assert has_blob(blobs, IMAGE)


def test_orphan_blob_of_a_dead_process_is_found_and_deleted(
    ledger: Ledger, blobs: Blobs, submission: Submission
) -> None:
    accept_job(ledger, blobs, with_image(submission, IMAGE), IMAGE)
    blobs.put(RESULT)
    collector = GarbageCollector(ledger, blobs, aside_seconds=-1)
    collector.collect_orphans()
    assert list(blobs.list_set_aside()) == [], "it is too young to be an orphan"
    collector.collect_orphans(older_than=-1)
    collector.sweep()
    assert has_blob(blobs, IMAGE)
    assert not has_blob(blobs, RESULT)


def test_blobs_of_another_ledger_are_not_deleted(ledger: Ledger, blobs: Blobs, server: redis.Redis) -> None:
    collector = GarbageCollector(ledger, blobs, aside_seconds=-1)
    collector.collect_orphans()
    blobs.put(RESULT)
    server.flushall()  # as if the service had been pointed at another server
    collector.collect_orphans(older_than=-1)
    assert has_blob(blobs, RESULT)
    assert list(blobs.list_set_aside()) == []


def test_only_one_process_searches_for_orphans_at_a_time(ledger: Ledger) -> None:
    assert [ledger.retention.take_turn(60) for _ in range(3)] == [True, False, False]


def write_old_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - 100_000,) * 2)
    return path


def test_old_half_written_files_are_deleted(ledger: Ledger, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    digest = blobs.put(IMAGE)
    halves = [
        write_old_file(tmp_path / digest[7:9] / ".new-abc"),
        write_old_file(tmp_path / "incoming" / "upload-abc"),
    ]
    young = blobs.incoming_folder() / "upload-def"
    young.write_bytes(b"half")
    GarbageCollector(ledger, blobs).collect_orphans()
    assert not any(half.exists() for half in halves)
    assert young.exists()
    assert has_blob(blobs, IMAGE)


def test_old_upload_that_never_reached_object_storage_is_deleted(settings: Settings) -> None:
    blobs = open_blobs(settings.model_copy(update={"blobs_url": "memory:///prefix"}))
    half, young = (
        write_old_file(blobs.incoming_folder() / "upload-abc"),
        blobs.incoming_folder() / "upload-def",
    )
    young.write_bytes(b"half")
    blobs.delete_partial_files()
    assert (half.exists(), young.exists()) == (False, True)


def test_foreign_file_among_blobs_set_aside_is_ignored(blobs: Blobs, tmp_path: Path) -> None:
    if isinstance(blobs, FolderBlobs):
        blobs.put(IMAGE)
        blobs.set_aside(digest_of(IMAGE), 1)
        (tmp_path / "blobs" / "aside" / "README").touch()
        assert list(blobs.list_set_aside()) == [SetAside(digest_of(IMAGE), 1)]
