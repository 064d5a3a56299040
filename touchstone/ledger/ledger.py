"""The truth about every job, in Valkey or Redis.

Each change is one Lua script that compares and sets, so the server's own order is the order of events and any
process may call anything at any time. Every script can be repeated: one whose answer was lost is sent again.
A worker writes under the number of its claim (`Job.claims`), refused once another has claimed the job.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from touchstone.errors import (
    BudgetSpent,
    Crowded,
    Failure,
    IdempotencyMismatch,
    JobConflict,
    QueueFull,
    TenantQueueFull,
    UnknownJob,
    WorkerLost,
)
from touchstone.ledger import codec
from touchstone.ledger.api_keys import Keys
from touchstone.ledger.broker import QUEUE, queue_of
from touchstone.ledger.connection import connect, reachable
from touchstone.ledger.events import Watch, read_events
from touchstone.ledger.query_budget import Spending
from touchstone.ledger.quotas import NOTHING, Allowance, Allowances, Needs, over_storage
from touchstone.ledger.records import Artifact, Job, Problem, Progress, Status, Submission, Timings
from touchstone.ledger.replies import Cancellation, Event, Pooled, Queue, Reaped, Verdict, Worker
from touchstone.ledger.retention import Keeping
from touchstone.ledger.scripts import Scripts
from touchstone.ledger.search import Finder
from touchstone.ledger.webhooks.outbox import Outbox
from touchstone.models.measurements import Probe
from touchstone.settings import Settings

RING_SECONDS = 1.0
RING_AT_ONCE = 100
LEASES_OF_SILENCE = 3
PROBE_SECONDS = 30 * 86_400

Report = tuple[str, int, Progress, Mapping[str, float] | None]
"""Job, claim, progress, metric."""


class Ledger:
    """Job records and their life, shared by the API and all workers; may be used from many threads."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._settings = settings
        self.client = connect(url)
        self.scripts = Scripts(self.client)
        self.finder = Finder(self.client, self.scripts)
        self.keys = Keys(self.client, self.scripts)
        self.outbox = Outbox(self.client, self.scripts, days=settings.webhook_days)
        self.allowances = Allowances(self.client, self.scripts, settings)
        self.spending = Spending(self.client, self.scripts)
        self.keeping = Keeping(self.client, self.scripts, settings)

    def accept(
        self, submission: Submission, *, idempotency: tuple[str, str] | None = None, needs: Needs = NOTHING
    ) -> tuple[Job, bool]:
        """Write a new job down; true where it is new, false where its key and digest were known.

        `IdempotencyMismatch` where the key came with another digest, `QueueFull` where too many jobs wait,
        `TenantQueueFull` where too many of the tenant's do, `BudgetSpent` where its passes would be too many,
        `StorageFull` where the tenant's bytes would be.
        """
        job, created = self._accept(secrets.token_hex(16), submission, idempotency, needs)
        return codec.job(job), created

    def check(
        self, submission: Submission, *, idempotency: tuple[str, str] | None = None, needs: Needs = NOTHING
    ) -> None:
        """Raise as `accept` would now; nothing is written."""
        self._accept("", submission, idempotency, needs)

    def _accept(
        self, name: str, submission: Submission, idempotency: tuple[str, str] | None, needs: Needs
    ) -> tuple[Sequence[str], bool]:
        key, digest = idempotency or ("", "")
        allowed = self.allowances.of(submission.tenant)
        verdict, *rest = self.scripts.run(
            "jobs/accept",
            name,
            submission.model_dump_json(),
            submission.kind,
            submission.method,
            submission.model.id,
            _milliseconds(submission.deadline or self._settings.deadline),
            self._settings.queue_limit,
            _milliseconds(RING_SECONDS),
            hashlib.sha256(f"{submission.tenant} {key}".encode()).hexdigest() if key else "",
            digest,
            _milliseconds(self._settings.idempotency_days * 86_400),
            submission.tenant,
            submission.webhook or "",
            needs.passes,
            "" if allowed.waiting is None else allowed.waiting,
            "" if allowed.passes is None else allowed.passes,
            needs.brings,
            needs.leaves,
            "" if allowed.storage is None else allowed.storage,
        )
        if verdict in ("created", "known", "fits"):
            return (rest[0] if rest else ()), verdict == "created"
        raise self._refusal(verdict, rest, allowed)

    def _refusal(self, verdict: str, rest: Sequence[int], allowed: Allowance) -> Failure:
        """Why a job was not accepted, and when it is worth coming back."""
        if verdict == "mismatch":
            return IdempotencyMismatch(
                "Idempotency-Key: it was used before with another request; take a new one"
            )
        if verdict == "spent":
            after = math.ceil(rest[0] / 1000)
            return BudgetSpent(
                f"the job's passes and those of today are more than {allowed.passes:,}; "
                f"the day ends in {after:,} s, at midnight UTC",
                retry_after=after,
            )
        if verdict == "stored":
            return over_storage(rest[0], allowed)
        # The longer the queue takes to pass, the later it is worth coming back.
        after = min(60, max(1, rest[0] // 10_000))
        if verdict == "crowded":
            return TenantQueueFull(
                f"{allowed.waiting:,} jobs of yours are waiting, as many as may; try again in {after} s",
                retry_after=after,
            )
        limit = self._settings.queue_limit
        return QueueFull(
            f"{limit:,} jobs are waiting, as many as may; try again in {after} s", retry_after=after
        )

    def read(self, job: str) -> Job:
        """The job as it stands; `UnknownJob` where there is none."""
        with reachable():
            stored: Any = self.client.hgetall(f"ts:job:{job}")
        if not stored:
            raise UnknownJob.named(job)
        return codec.job([text for pair in stored.items() for text in pair])

    def tenants(self, jobs: Sequence[str]) -> dict[str, str]:
        """Whose these jobs are, asked in one go; without those that there are not."""
        with reachable(), self.client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(f"ts:job:{job}", "tenant")
            answers = zip(jobs, pipe.execute(), strict=True)
        return {job: tenant for job, tenant in answers if tenant}

    def ahead(self, job: str) -> int:
        """How many jobs get their turn before this one if none ends meanwhile; 0 where it no longer waits."""
        return int(self.scripts.run("jobs/ahead", job))

    def progress(self, jobs: Collection[str]) -> dict[str, Progress]:
        """How far each of these jobs is, asked in one go; without those that there are not."""
        with reachable(), self.client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(f"ts:job:{job}", "done", "total")
            answers = zip(jobs, pipe.execute(), strict=True)
        return {job: Progress(done=int(done), total=int(total)) for job, (done, total) in answers if done}

    def claim(
        self, job: str, worker: str, *, token: str | None = None, crowd: Collection[str] = ()
    ) -> Job | None:
        """Answer the bell of a job with the one whose turn it is in its lane; None where none waits there.

        A worker takes only jobs of models that it serves, and none of the tenants in the `crowd`; raises
        `Crowded` where nobody else waits. With a `token` of the caller's own, a call repeated after a lost
        answer gets the same claim.
        """
        lease, besides = _milliseconds(self._settings.lease), json.dumps(list(crowd))
        token = token or secrets.token_hex(8)
        pairs = self.scripts.run("jobs/claim", job, worker, token, lease, besides, *self._settings.served)
        if pairs == "crowded":
            raise Crowded
        return codec.job(pairs) if pairs else None

    def renew(self, worker: str, jobs: Mapping[str, int]) -> dict[str, Verdict]:
        """Extend the leases of running jobs, given as id and claim, and hear what each should do."""
        if not jobs:
            return {}
        pairs = [part for pair in jobs.items() for part in pair]
        verdicts = self.scripts.run("jobs/renew", worker, _milliseconds(self._settings.lease), *pairs)
        return dict(zip(jobs, verdicts, strict=True))

    def report(
        self, job: str, attempt: int, progress: Progress, metric: Mapping[str, float] | None = None
    ) -> bool:
        """Note how far a job is, and a metric if there is one; false where the claim no longer holds."""
        return self.report_all([(job, attempt, progress, metric)])[0]

    def report_all(self, reports: Iterable[Report]) -> list[bool]:
        """Many reports in one write."""
        groups = [
            (job, attempt, *codec.report(progress, metric)) for job, attempt, progress, metric in reports
        ]
        heard = (
            self.scripts.run("jobs/report", *(part for group in groups for part in group)) if groups else []
        )
        return [answer == 1 for answer in heard]

    def finish(
        self,
        job: str,
        attempt: int,
        *,
        status: Status,
        result: Mapping[str, Any] | None = None,
        error: Problem | None = None,
        timings: Timings | None = None,
        artifacts: Mapping[str, Artifact] | None = None,
        last: Report | None = None,
    ) -> bool:
        """End a job, after the last report of it if there is one; false where the claim no longer holds.

        A job whose cancellation was granted meanwhile ends as canceled, whatever is said here.
        """
        parts = codec.outcome(result, error, timings, artifacts or {})
        report = codec.report(last[2], last[3]) if last else ("", "", "")
        return bool(self.scripts.run("jobs/finish", job, attempt, status, *report, *parts))

    def release(self, job: str, attempt: int) -> bool:
        """Give a running job back to the queue as if it had not been tried; false where another holds it."""
        return bool(self.scripts.run("jobs/release", job, attempt))

    def cancel(self, job: str) -> Job:
        """End a waiting job, or ask a running one to end; `JobConflict` where it ended otherwise."""
        [answer] = self.cancel_all([job])
        if answer.refused:
            raise answer.refused
        return self.read(job)

    def cancel_all(self, jobs: Sequence[str]) -> list[Cancellation]:
        """Cancel many in one step; one that cannot be canceled keeps none of the others."""
        statuses = self.scripts.run("jobs/cancel", *jobs) if jobs else []
        return [_cancellation(job, status) for job, status in zip(jobs, statuses, strict=True)]

    def delete(self, job: str) -> None:
        """Forget a job; `JobConflict` while it runs."""
        verdict = self.scripts.run("jobs/delete", job)
        if verdict == "unknown":
            raise UnknownJob.named(job)
        if verdict == "running":
            raise JobConflict("the job is running; cancel it before deleting it")

    def reap(self) -> Reaped:
        """Take jobs from workers that fell silent, and name the jobs whose bell must be rung."""
        problem = Problem(
            code=WorkerLost.code,
            detail=f"all {self._settings.max_attempts} workers that tried the job died or hung",
        )
        ring, lost = self.scripts.run(
            "jobs/reap",
            self._settings.max_attempts,
            problem.model_dump_json(),
            _milliseconds(RING_SECONDS),
            RING_AT_ONCE,
            QUEUE,
            self._life(),
        )
        return Reaped(tuple(ring), tuple(lost))

    def pooled(self, pool: str, seed: int) -> Pooled:
        """The counts of a pool so far; where there are none, `seed` becomes the one that all draw from."""
        return self._pool(pool, seed, 0, "")

    def pool(self, pool: str, counts: Mapping[str, Any]) -> Pooled:
        """Keep counts where they go further than those known; what the pool holds then."""
        return self._pool(pool, counts["seed"], counts["n"], json.dumps(counts))

    def _pool(self, pool: str, seed: int, n: int, counts: str) -> Pooled:
        life = _milliseconds(self._settings.counts_days * 86_400)
        drawn, known = self.scripts.run("jobs/pool", pool, seed, n, counts, life)
        return Pooled(int(drawn), json.loads(known) if known else None)

    def events(self, job: str, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        """What happened to a job after the event `after`, oldest first; `UnknownJob` where there is none."""
        found = read_events(self.client, job, after, limit)
        if not found:
            self.read(job)
        return found

    def counts(self, tenant: str | None = None) -> dict[Status, int]:
        """How many jobs there are in each status, of all tenants or of one."""
        statuses: tuple[Status, ...] = get_args(Status)
        with reachable(), self.client.pipeline(transaction=False) as pipe:
            for status in statuses:
                pipe.zcard(_status_index(status, tenant))
            return dict(zip(statuses, pipe.execute(), strict=True))

    def queue(self, tenant: str | None = None) -> Queue:
        """How many jobs wait, of all tenants or of one, and for how long."""
        depth, milliseconds = self.scripts.run("jobs/queue", _status_index("queued", tenant))
        return Queue(depth, milliseconds / 1000)

    def queue_of(self, job: str) -> str:
        """Where the bell of a job is to be rung: with the workers of its model alone, if it has any."""
        with reachable():
            lane: Any = self.client.hget(f"ts:job:{job}", "lane")
        return queue_of(lane) if lane else QUEUE

    def beat(self, worker: str, info: Mapping[str, Any], serves: Iterable[str] = ()) -> None:
        """A worker's sign of life, with its figures and the models that it serves if these are not all."""
        self._beats(worker, json.dumps(info) if info else "{}", *serves)

    def leave(self, worker: str) -> None:
        """A worker's farewell: it is no longer among the living."""
        self._beats(worker, "")

    def workers(self) -> list[Worker]:
        """Workers that gave a sign of life within three leases."""
        alive = self._beats("", "")
        return [Worker(name, json.loads(info), codec.moment(seen)) for name, info, seen in alive]

    def _beats(self, worker: str, info: str, *serves: str) -> Any:
        return self.scripts.run("jobs/beat", worker, info, self._life(), *serves)

    def _life(self) -> int:
        """Milliseconds after which a silent worker is forgotten."""
        return _milliseconds(LEASES_OF_SILENCE * self._settings.lease)

    def note_probe(self, digest: str, probe: Probe) -> None:
        """Keep for a month what the last load of the model with this digest measured."""
        with reachable():
            self.client.set(f"ts:probe:{digest}", probe.model_dump_json(), ex=PROBE_SECONDS)

    def probes(self, digests: Sequence[str]) -> dict[str, Probe]:
        """What is known of the models with these digests; without those that were never loaded."""
        with reachable():
            stored: Any = self.client.mget([f"ts:probe:{digest}" for digest in digests]) if digests else []
        found = zip(digests, map(codec.probe, stored), strict=True)
        return {digest: probe for digest, probe in found if probe is not None}

    def ping(self) -> None:
        """Return where the ledger answers, raise `LedgerUnavailable` where it does not."""
        with reachable():
            self.client.ping()

    def watch(self) -> Watch:
        """Hear of every job that changes."""
        return Watch(self.client)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def _status_index(status: Status, tenant: str | None) -> str:
    return f"ts:tenant:{tenant}:status:{status}" if tenant else f"ts:status:{status}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _cancellation(job: str, status: Status | Literal[""]) -> Cancellation:
    if not status:
        return Cancellation(job, None, UnknownJob.named(job))
    if status in ("running", "canceled"):
        return Cancellation(job, status)
    refused = JobConflict(f"the job has already {status}; only a waiting or running job can be canceled")
    return Cancellation(job, status, refused)
