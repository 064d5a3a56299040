"""No key of the ledger grows without bound: each is documented, and goes with what it tells of."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import redis

from api_tests.support.fake_service import EXAMINED
from service.state.dispatch import open_bell
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Artifact, Progress, Submission
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.models.zoo import manifests
from touchstone.settings import Settings
from touchstone.storage.blobs import FolderBlobs, digest_of
from touchstone.storage.garbage_collector import Sweeper

JOBS = 1000
FOR_GOOD = {"ts:name", "ts:secret", "ts:seq", *(f"ts:webhook-secrets:tenant{n}" for n in range(3))}
"""What stays of a ledger in which nothing is left."""

DOCS = Path(__file__).parents[2] / "docs/operations.md"


def documented() -> list[str]:
    """The patterns in the first column of the table of keys."""
    table = DOCS.read_text("utf-8").partition("## Ledger keys")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row)]


def unknown(server: redis.Redis) -> set[str]:
    patterns = documented()
    return {key for key in server.scan_iter() if not any(fnmatchcase(key, pattern) for pattern in patterns)}


class Site:
    """A ledger with its blobs, through which jobs go."""

    def __init__(self, settings: Settings, submission: Submission) -> None:
        self.ledger = Ledger(str(settings.redis_url), settings)
        self.blobs = FolderBlobs(settings.home / "blobs")
        self.submission = submission
        self.ring = open_bell(str(settings.redis_url), self.ledger.queue_of)

    def live(self, number: int) -> None:
        """A job from its acceptance to its end, of a kind that its number says."""
        job, _ = self.ledger.accept(self.asked(number), idempotency=(f"key {number}", "d"))
        if number % 100 == 0:
            self.ring(job.id)
        if number % 7 == 0:
            self.ledger.cancel_all([job.id])
        if claimed := self.ledger.claim(job.id, f"worker {number % 5}"):
            self.end(claimed.id, claimed.claims)

    def end(self, job: str, claim: int) -> None:
        progress = Progress(done=1, total=2)
        file = Artifact(digest=digest_of(job.encode()), media_type="image/png", size=1)
        ended = {"status": "succeeded", "result": {}, "artifacts": {"a.png": file}}
        assert self.ledger.finish(job, claim, last=(job, claim, progress, {"loss": 1.0}), **ended)

    def asked(self, number: int) -> Submission:
        changes = {"method": f"method{number % 9}", "tenant": f"tenant{number % 3}"}
        if number % 50 == 1:
            changes |= {"webhook": "https://hooks.example/jobs"}
        if number % 10 == 0:
            changes |= {"kind": "inference", "image": None, "file": digest_of(b"%d" % number)}
        return Submission.model_validate({**self.submission.model_dump(), **changes})

    def rest(self) -> None:
        """Everything else that is written to a ledger."""
        card = next(iter(manifests().values())).model_copy(
            update={"id": "mine", "digest": digest_of(b"model")}
        )
        Holdings.of(self.ledger, LOCAL).versions.register(card, EXAMINED)
        self.ledger.note_probe(card.digest, EXAMINED)
        self.ledger.spending(card.digest, 1, budget=None, rate=5.0, token="t")
        self.ledger.beat("worker", {"running": 1}, ["mine"])
        Holdings.of(self.ledger, "tenant0").find(limit=1)
        self.ledger.outbox.claim({})
        self.ledger.reap()
        self.ledger.pool("pool", {"seed": self.ledger.pooled("pool", 1).seed, "n": 1, "counts": {}})

    def clear(self, server: redis.Redis) -> None:
        """Let time pass, and delete what only its owner deletes."""
        for key in server.zrange("ts:ended", 0, -1):
            server.zadd("ts:ended", {key: 1})
        Holdings.of(self.ledger, LOCAL).versions.forget("mine")
        self.ledger.leave("worker")
        server.zadd("ts:served", {"mine": 1})
        self.ledger.reap()
        server.delete(*server.keys("touchstone*"), *server.keys("_kombu*"))  # workers have heard the bells


@pytest.fixture
def server(valkey: str) -> redis.Redis:
    return connect(valkey)


def test_of_a_thousand_jobs_nothing_stays(
    settings: Settings, submission: Submission, server: redis.Redis
) -> None:
    site = Site(settings.model_copy(update={"lease": 100}), submission)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(site.live, range(JOBS)))
    site.rest()
    site.ledger.cancel_all(server.zrange("ts:status:queued", 0, -1))
    assert site.ledger.counts()["succeeded"] > JOBS / 2
    assert len(server.keys("ts:job:*")) == JOBS
    assert unknown(server) == set(), "document them, and say what bounds them, in docs/operations.md"
    site.clear(server)
    Sweeper(site.ledger, site.blobs).sweep()
    left = set(server.keys())
    assert {key for key in left if server.ttl(key) == -1} == FOR_GOOD, "these would stay for ever"
    assert left - FOR_GOOD == {"ts:counts:pool", "ts:spend:t", "ts:turn"}


def test_every_pattern_that_is_documented_is_one_of_the_code() -> None:
    root = Path(__file__).parents[2] / "touchstone"
    code = "".join(
        path.read_text("utf-8")
        for folder in ("ledger", "storage")
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in (".py", ".lua")
    )
    stems = [pattern.rstrip("*").rstrip(":") for pattern in documented() if pattern.startswith("ts:")]
    built = {"ts:all", "ts:kind", "ts:method"}  # from their names
    assert [stem for stem in stems if stem not in code and stem not in built] == []


def test_the_events_of_a_job_are_bounded(ledger: Ledger, submission: Submission, server: redis.Redis) -> None:
    job, _ = ledger.accept(submission)
    assert ledger.claim(job.id, "w")
    for start in range(0, 3000, 500):
        ledger.report_all(
            [(job.id, 1, Progress(done=done, total=3000), None) for done in range(start, start + 500)]
        )
    assert 1000 <= server.xlen(f"ts:events:{job.id}") <= 1100


def test_bells_that_no_worker_hears_are_bounded(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    for _ in range(2):
        ledger.accept(submission)
    server.lpush("touchstone", *map(str, range(5000)))
    ledger.reap()
    assert server.lrange("touchstone", -1, -1) == ["0"], "the first to be heard stays"
    assert server.llen("touchstone") == 1002


def test_who_fell_silent_is_forgotten_with_all_that_was_said(ledger: Ledger, server: redis.Redis) -> None:
    ledger.beat("worker", {"running": 1}, ["mine"])
    server.zadd("ts:workers", {"worker": 1})
    server.zadd("ts:served", {"mine": 1})
    assert ledger.workers() == []
    assert server.keys("ts:*") == []


def test_a_key_of_a_request_is_kept_for_so_long_only(
    ledger: Ledger, settings: Settings, submission: Submission, server: redis.Redis
) -> None:
    ledger.accept(submission, idempotency=("key", "digest"))
    (key,) = server.keys("ts:key:*")
    assert 0 < server.ttl(key) <= settings.idempotency_days * 86_400


def test_a_job_takes_no_key_along_that_is_another_s_by_now(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    first, _ = ledger.accept(submission, idempotency=("key", "digest"))
    server.delete(*server.keys("ts:key:*"))  # as if it had expired
    second, _ = ledger.accept(submission, idempotency=("key", "digest"))
    ledger.delete(first.id)
    assert ledger.accept(submission, idempotency=("key", "digest")) == (second, False)
