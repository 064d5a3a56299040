"""No key of the ledger grows without bound: each is documented, and deleted with what it belongs to."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

import redis

from api_tests.support.fake_service import MODEL_PROBE
from service.state.dispatch import open_dispatch
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Artifact, Progress, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models.zoo import manifests
from touchstone.settings import Settings
from touchstone.storage.blobs import FolderBlobs, digest_of
from touchstone.storage.garbage_collector import GarbageCollector

JOBS = 1000
PERMANENT_KEYS = {
    *("ts:name", "ts:secret", "ts:seq", "ts:reaped"),
    *(f"ts:webhook-secrets:tenant{n}" for n in range(3)),
}
"""Keys that stay when all jobs, models and webhooks are gone."""

DOCS = Path(__file__).parents[2] / "docs/operations.md"


def read_documented_patterns() -> list[str]:
    """The patterns in the first column of the table of keys."""
    table = DOCS.read_text("utf-8").partition("## Ledger keys")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row)]


def find_undocumented_keys(server: redis.Redis) -> set[str]:
    patterns = read_documented_patterns()
    return {key for key in server.scan_iter() if not any(fnmatchcase(key, pattern) for pattern in patterns)}


class LedgerWithBlobs:
    """A ledger with its blobs, and jobs that run through both."""

    def __init__(self, settings: Settings, submission: Submission) -> None:
        self.ledger = Ledger(str(settings.redis_url), settings)
        self.blobs = FolderBlobs(settings.home / "blobs")
        self.submission = submission
        self.dispatch = open_dispatch(self.ledger)

    def run_job(self, number: int) -> None:
        """A job from its acceptance to its end; its number decides its kind."""
        job, _ = self.ledger.accept(self.build_submission(number), idempotency=(f"key {number}", "d"))
        if number % 100 == 0:
            self.dispatch(job.id)
        if number % 7 == 0:
            self.ledger.cancel_all([job.id])
        if claimed := self.ledger.claim(job.id, f"worker {number % 5}"):
            self.finish_job(claimed.id, claimed.claims)

    def finish_job(self, job: str, claim: int) -> None:
        progress = Progress(done=1, total=2)
        file = Artifact(digest=digest_of(job.encode()), media_type="image/png", size=1)
        ended = {"status": "succeeded", "result": {}, "artifacts": {"a.png": file}}
        assert self.ledger.finish(job, claim, last_report=(job, claim, progress, {"loss": 1.0}), **ended)

    def build_submission(self, number: int) -> Submission:
        changes = {"method": f"method{number % 9}", "tenant": f"tenant{number % 3}"}
        if number % 50 == 1:
            changes |= {"webhook": "https://hooks.example/jobs"}
        if number % 10 == 0:
            changes |= {"kind": "inference", "image": None, "file": digest_of(b"%d" % number)}
        return Submission.model_validate({**self.submission.model_dump(), **changes})

    def write_other_keys(self) -> None:
        """Everything else that is written to a ledger."""
        manifest = next(iter(manifests().values())).model_copy(
            update={"id": "mine", "digest": digest_of(b"model")}
        )
        TenantLedger.of(self.ledger, LOCAL).versions.register(manifest, MODEL_PROBE)
        self.ledger.probes.store(manifest.digest, MODEL_PROBE)
        self.ledger.query_budget(manifest.digest, 1, budget=None, rate=5.0, token="t")
        self.ledger.workers.heartbeat("worker", {"running": 1}, ["mine"])
        TenantLedger.of(self.ledger, "tenant0").find(limit=1)
        self.ledger.outbox.claim({})
        self.ledger.reap()
        self.ledger.count_pools.extend(
            "pool", {"seed": self.ledger.count_pools.read("pool", 1).seed, "n": 1, "counts": {}}
        )

    def expire_everything(self, server: redis.Redis) -> None:
        """Let time pass, and delete what only its owner deletes."""
        for key in server.zrange("ts:ended", 0, -1):
            server.zadd("ts:ended", {key: 1})
        TenantLedger.of(self.ledger, LOCAL).versions.delete("mine")
        self.ledger.workers.remove("worker")
        server.zadd("ts:served", {"mine": 1})
        self.ledger.reap()
        server.delete(*server.keys("touchstone*"), *server.keys("_kombu*"))  # workers have taken the messages


def test_thousand_jobs_leave_no_keys_behind(
    settings: Settings, submission: Submission, server: redis.Redis
) -> None:
    site = LedgerWithBlobs(settings.model_copy(update={"lease": 100}), submission)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(site.run_job, range(JOBS)))
    site.write_other_keys()
    site.ledger.cancel_all(server.zrange("ts:status:queued", 0, -1))
    assert site.ledger.count_by_status()["succeeded"] > JOBS / 2
    assert len(server.keys("ts:job:*")) == JOBS
    assert find_undocumented_keys(server) == set(), (
        "document them, and say what bounds them, in docs/operations.md"
    )
    site.expire_everything(server)
    GarbageCollector(site.ledger, site.blobs).sweep()
    left = set(server.keys())
    assert {key for key in left if server.ttl(key) == -1} == PERMANENT_KEYS, "these would stay for ever"
    assert left - PERMANENT_KEYS == {"ts:counts:pool", "ts:spend:t", "ts:turn"}


def test_every_documented_key_pattern_stands_in_the_code() -> None:
    root = Path(__file__).parents[2] / "touchstone"
    code = "".join(
        path.read_text("utf-8")
        for folder in ("ledger", "storage")
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in (".py", ".lua")
    )
    stems = [
        pattern.rstrip("*").rstrip(":") for pattern in read_documented_patterns() if pattern.startswith("ts:")
    ]
    built = {"ts:all", "ts:kind", "ts:method"}  # from their names
    assert [stem for stem in stems if stem not in code and stem not in built] == []


def test_event_stream_of_a_job_is_bounded(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    job, _ = ledger.accept(submission)
    assert ledger.claim(job.id, "w")
    for start in range(0, 3000, 500):
        ledger.report_all(
            [(job.id, 1, Progress(done=done, total=3000), None) for done in range(start, start + 500)]
        )
    assert 1000 <= server.xlen(f"ts:events:{job.id}") <= 1100


def test_dispatch_messages_that_no_worker_takes_are_bounded(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    for _ in range(2):
        ledger.accept(submission)
    server.lpush("touchstone", *map(str, range(5000)))
    ledger.reap()
    assert server.lrange("touchstone", -1, -1) == ["0"], "the first to be taken stays"
    assert server.llen("touchstone") == 1002


def test_silent_worker_is_forgotten_with_all_its_keys(ledger: Ledger, server: redis.Redis) -> None:
    ledger.workers.heartbeat("worker", {"running": 1}, ["mine"])
    server.zadd("ts:workers", {"worker": 1})
    server.zadd("ts:served", {"mine": 1})
    assert ledger.workers.alive() == []
    assert server.keys("ts:*") == []


def test_idempotency_key_expires(
    ledger: Ledger, settings: Settings, submission: Submission, server: redis.Redis
) -> None:
    ledger.accept(submission, idempotency=("key", "digest"))
    (key,) = server.keys("ts:key:*")
    assert 0 < server.ttl(key) <= settings.idempotency_days * 86_400


def test_deleted_job_keeps_an_idempotency_key_that_is_now_anothers(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    first, _ = ledger.accept(submission, idempotency=("key", "digest"))
    server.delete(*server.keys("ts:key:*"))  # as if it had expired
    second, _ = ledger.accept(submission, idempotency=("key", "digest"))
    ledger.delete(first.id)
    assert ledger.accept(submission, idempotency=("key", "digest")) == (second, False)
