"""What is kept and what goes: jobs expire, and blobs are deleted once nobody holds them, and not before."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import redis
from obstore.store import MemoryStore

from api_tests.support.fake_service import EXAMINED
from touchstone.errors import StartError, UnknownArtifact, UnknownJob
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Artifact, Job, Submission
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.models.zoo import manifests
from touchstone.settings import Settings
from touchstone.storage.blobs import Aside, Blobs, FolderBlobs, StoreBlobs, digest_of, open_blobs
from touchstone.storage.garbage_collector import Sweeper

IMAGE, FILE, RESULT = b"an image", b"a file", b"a result"


@pytest.fixture(params=["folder", "store"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return FolderBlobs(tmp_path / "blobs")
    return StoreBlobs(MemoryStore(), tmp_path / "incoming")


@pytest.fixture
def server(valkey: str) -> redis.Redis:
    return connect(valkey)


@pytest.fixture
def sweeper(ledger: Ledger, blobs: Blobs) -> Sweeper:
    """One that sets aside in a round and drops in the next."""
    return Sweeper(ledger, blobs, aside_seconds=-1)


def on(submission: Submission, data: bytes) -> Submission:
    """The same, of another image."""
    assert submission.image
    image = submission.image.model_copy(update={"digest": digest_of(data)})
    return submission.model_copy(update={"image": image})


def on_file(submission: Submission, data: bytes, kind: str = "registration") -> Submission:
    changes = {"kind": kind, "image": None, "file": digest_of(data)}
    return Submission.model_validate({**submission.model_dump(), **changes})


def accepted(ledger: Ledger, blobs: Blobs, asked: Submission, data: bytes) -> Job:
    blobs.put(data)
    return ledger.accept(asked)[0]


def ended(ledger: Ledger, blobs: Blobs, job: Job, *files: bytes) -> None:
    claimed = ledger.claim(job.id, "w")
    assert claimed
    artifacts = {
        f"{place}.png": Artifact(digest=blobs.put(data), media_type="image/png", size=len(data))
        for place, data in enumerate(files)
    }
    assert ledger.finish(job.id, claimed.claims, status="succeeded", artifacts=artifacts)


def long_ago(server: redis.Redis) -> None:
    """As if every job that has ended had done so a year ago."""
    for name, at in server.zrange("ts:ended", 0, -1, withscores=True):
        server.zadd("ts:ended", {name: at - 366 * 86_400_000})


def is_there(blobs: Blobs, data: bytes) -> bool:
    try:
        return blobs.get(digest_of(data)) == data
    except UnknownArtifact:
        return False


def test_an_ended_job_expires_with_all_that_it_left(
    ledger: Ledger, blobs: Blobs, sweeper: Sweeper, submission: Submission, server: redis.Redis
) -> None:
    blobs.put(IMAGE)
    job, _ = ledger.accept(on(submission, IMAGE), idempotency=("key", "digest"))
    ended(ledger, blobs, job, RESULT)
    sweeper.sweep()
    assert is_there(blobs, IMAGE)
    assert is_there(blobs, RESULT)
    long_ago(server)
    sweeper.sweep()
    with pytest.raises(UnknownJob):
        ledger.read(job.id)
    assert not is_there(blobs, IMAGE)
    assert not is_there(blobs, RESULT)
    assert sorted(server.keys()) == ["ts:name", "ts:seq", "ts:turn"]


def test_a_waiting_or_running_job_never_expires(
    ledger: Ledger, blobs: Blobs, sweeper: Sweeper, submission: Submission, server: redis.Redis
) -> None:
    jobs = [accepted(ledger, blobs, on(submission, IMAGE), IMAGE) for _ in range(2)]
    assert ledger.claim(jobs[0].id, "w")
    for job in jobs:
        server.hset(f"ts:job:{job.id}", "created_at", 1)
    sweeper.sweep()
    assert [ledger.read(job.id).status for job in jobs] == ["running", "queued"]
    assert is_there(blobs, IMAGE)


def test_one_round_forgets_all_that_expired(
    ledger: Ledger,
    tmp_path: Path,
    submission: Submission,
    server: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("ledger.retention", "storage.garbage_collector"):
        monkeypatch.setattr(f"touchstone.{module}.EXPIRED_AT_ONCE", 2)
    for _ in range(5):
        ledger.cancel(ledger.accept(submission)[0].id)
    long_ago(server)
    Sweeper(ledger, FolderBlobs(tmp_path)).sweep()
    assert Holdings.of(ledger, LOCAL).find().jobs == ()


def test_a_shared_blob_goes_with_the_last_who_holds_it(
    ledger: Ledger, blobs: Blobs, sweeper: Sweeper, submission: Submission
) -> None:
    first, second, third = (accepted(ledger, blobs, on(submission, IMAGE), IMAGE) for _ in range(3))
    ended(ledger, blobs, first, IMAGE, IMAGE)  # what the job leaves may be the image itself, twice
    for job in (second, third):
        ledger.cancel(job.id)
    for job in (third, first):
        ledger.delete(job.id)
        sweeper.sweep()
        assert is_there(blobs, IMAGE)
    ledger.delete(second.id)
    sweeper.sweep()
    assert not is_there(blobs, IMAGE)


def test_a_file_goes_with_the_end_of_its_job(
    ledger: Ledger, blobs: Blobs, sweeper: Sweeper, submission: Submission
) -> None:
    job = accepted(ledger, blobs, on_file(submission, FILE), FILE)
    sweeper.sweep()
    assert is_there(blobs, FILE)
    ended(ledger, blobs, job)
    sweeper.sweep()
    assert not is_there(blobs, FILE)
    assert ledger.read(job.id).submission.file == digest_of(FILE)
    ledger.delete(job.id)


def test_a_file_goes_with_a_job_that_was_deleted_as_it_waited(
    ledger: Ledger, blobs: Blobs, sweeper: Sweeper, submission: Submission
) -> None:
    ledger.delete(accepted(ledger, blobs, on_file(submission, FILE), FILE).id)
    sweeper.sweep()
    assert not is_there(blobs, FILE)


def test_a_registered_version_keeps_its_file_until_it_is_deleted(
    ledger: Ledger, blobs: Blobs, sweeper: Sweeper, submission: Submission, server: redis.Redis
) -> None:
    job = accepted(ledger, blobs, on_file(submission, FILE), FILE)
    card = next(iter(manifests().values())).model_copy(update={"id": "mine", "digest": digest_of(FILE)})
    for _ in range(2):
        Holdings.of(ledger, LOCAL).versions.register(card, EXAMINED)
    ledger.note_probe(card.digest, EXAMINED)
    ledger.spending(card.digest, 5, budget=None, rate=None, token="t")
    ended(ledger, blobs, job)
    ledger.delete(job.id)
    sweeper.sweep()
    assert is_there(blobs, FILE)
    Holdings.of(ledger, LOCAL).versions.forget("mine")
    sweeper.sweep()
    assert not is_there(blobs, FILE)
    assert not server.keys(f"ts:*{card.digest}")


def test_what_is_set_aside_can_be_read_until_it_is_dropped(
    ledger: Ledger, blobs: Blobs, submission: Submission
) -> None:
    patient = Sweeper(ledger, blobs)
    ledger.delete(accepted(ledger, blobs, on(submission, IMAGE), IMAGE).id)
    for _ in range(2):
        patient.sweep()
    assert [entry.digest for entry in blobs.aside()] == [digest_of(IMAGE)]
    assert blobs.get(digest_of(IMAGE)) == IMAGE
    assert blobs.read(digest_of(IMAGE), 3, 100) == IMAGE[3:]
    assert blobs.size(digest_of(IMAGE)) == len(IMAGE)


def test_bytes_that_were_found_stored_and_then_swept_are_there_for_the_job_that_follows(
    ledger: Ledger, blobs: Blobs, sweeper: Sweeper, submission: Submission
) -> None:
    ledger.delete(accepted(ledger, blobs, on(submission, IMAGE), IMAGE).id)
    blobs.put(IMAGE)  # finds them, and then comes the sweeper
    Sweeper(ledger, blobs).sweep()
    ledger.accept(on(submission, IMAGE))
    assert is_there(blobs, IMAGE)
    sweeper.sweep()  # long after
    assert is_there(blobs, IMAGE)
    assert list(blobs.aside()) == []


def test_a_blob_that_is_held_again_is_left_where_it_is(
    ledger: Ledger, blobs: Blobs, submission: Submission
) -> None:
    ledger.delete(accepted(ledger, blobs, on(submission, IMAGE), IMAGE).id)
    ledger.accept(on(submission, IMAGE))
    Sweeper(ledger, blobs).sweep()
    assert list(blobs.aside()) == []


def test_bytes_that_are_put_again_are_a_blob_of_their_own(
    ledger: Ledger, blobs: Blobs, sweeper: Sweeper, submission: Submission
) -> None:
    ledger.delete(accepted(ledger, blobs, on(submission, IMAGE), IMAGE).id)
    Sweeper(ledger, blobs).sweep()
    blobs.put(IMAGE)
    sweeper.sweep()  # drops what was set aside, and looks at nothing that has yet to be held
    ledger.accept(on(submission, IMAGE))
    assert is_there(blobs, IMAGE)


def test_what_a_dead_process_stored_is_found(ledger: Ledger, blobs: Blobs, submission: Submission) -> None:
    accepted(ledger, blobs, on(submission, IMAGE), IMAGE)
    blobs.put(RESULT)
    sweeper = Sweeper(ledger, blobs, aside_seconds=-1)
    sweeper.search()
    assert list(blobs.aside()) == [], "it is too young to be an orphan"
    sweeper.search(older_than=-1)
    sweeper.sweep()
    assert is_there(blobs, IMAGE)
    assert not is_there(blobs, RESULT)


def test_blobs_of_another_ledger_are_left_alone(ledger: Ledger, blobs: Blobs, server: redis.Redis) -> None:
    sweeper = Sweeper(ledger, blobs, aside_seconds=-1)
    sweeper.search()
    blobs.put(RESULT)
    server.flushall()  # as if the service had been pointed at another server
    sweeper.search(older_than=-1)
    assert is_there(blobs, RESULT)
    assert list(blobs.aside()) == []


def test_one_of_all_processes_searches(ledger: Ledger) -> None:
    assert [ledger.keeping.take_turn(60) for _ in range(3)] == [True, False, False]


def old(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - 100_000,) * 2)
    return path


def test_what_was_half_written_long_ago_is_deleted(ledger: Ledger, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    digest = blobs.put(IMAGE)
    halves = [old(tmp_path / digest[7:9] / ".new-abc"), old(tmp_path / "incoming" / "upload-abc")]
    young = blobs.incoming() / "upload-def"
    young.write_bytes(b"half")
    Sweeper(ledger, blobs).search()
    assert not any(half.exists() for half in halves)
    assert young.exists()
    assert is_there(blobs, IMAGE)


def test_what_never_reached_the_store_is_deleted(settings: Settings) -> None:
    blobs = open_blobs(settings.model_copy(update={"blobs_url": "memory:///prefix"}))
    half, young = old(blobs.incoming() / "upload-abc"), blobs.incoming() / "upload-def"
    young.write_bytes(b"half")
    blobs.tidy()
    assert (half.exists(), young.exists()) == (False, True)


def test_names_that_nobody_gave_are_ignored(blobs: Blobs, tmp_path: Path) -> None:
    if isinstance(blobs, FolderBlobs):
        blobs.put(IMAGE)
        blobs.set_aside(digest_of(IMAGE), 1)
        (tmp_path / "blobs" / "aside" / "README").touch()
        assert list(blobs.aside()) == [Aside(digest_of(IMAGE), 1)]


def test_a_ledger_from_before_blobs_were_counted_is_left_alone(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    ledger.keeping.check_age()
    ledger.accept(submission)
    ledger.keeping.check_age()
    server.hset("ts:registry", "mine", "[]")  # where models stood that were everybody's
    with pytest.raises(StartError, match="another TOUCHSTONE_HOME"):
        ledger.keeping.check_age()
