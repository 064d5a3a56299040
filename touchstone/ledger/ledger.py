"""The state of every job, in Valkey or Redis.

Each change is one Lua script that compares and sets, so the server's order is the order of events and any
process may call anything at any time. Every script can be repeated: one whose answer was lost is sent again.
A worker writes with the number of its claim (`Job.claims`) and is refused once another worker has claimed the
job.
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
    Failure,
    IdempotencyMismatch,
    JobConflict,
    NoFreeSlot,
    QueueFull,
    TenantQueueFull,
    UnknownJob,
)
from touchstone.ledger import codec
from touchstone.ledger.api_keys import ApiKeys
from touchstone.ledger.broker import QUEUE, build_message
from touchstone.ledger.connection import connect, map_redis_errors
from touchstone.ledger.count_pools import CountPools
from touchstone.ledger.events import Watch, read_events
from touchstone.ledger.large_values import (
    BlobStore,
    LargeValues,
    encode_reference,
    encode_value,
    measure,
)
from touchstone.ledger.losses import COHORTS, Losses
from touchstone.ledger.probes import Probes
from touchstone.ledger.query_budget import QueryBudget
from touchstone.ledger.quotas import NO_USAGE, Quota, Quotas, QuotaUsage, storage_full
from touchstone.ledger.records import (
    Artifact,
    Job,
    JobFailure,
    LargeValue,
    Progress,
    Status,
    Submission,
    Timings,
)
from touchstone.ledger.replies import (
    Cancellation,
    Event,
    LeaseVerdict,
    QueueState,
    ReapResult,
)
from touchstone.ledger.retention import Retention
from touchstone.ledger.schema import Schema
from touchstone.ledger.scripts import Scripts
from touchstone.ledger.search import Finder
from touchstone.ledger.webhooks.outbox import Outbox
from touchstone.ledger.workers import Workers, worker_expiry_ms
from touchstone.settings import Settings

REDISPATCH_SECONDS = 1.0
MAX_REDISPATCHES = 100

ProgressReport = tuple[str, int, Progress, Mapping[str, float] | None]
"""Job, claim, progress, metric."""


class Ledger:
    """Jobs from acceptance to deletion, with the other parts of the ledger beside them.

    Shared by the API and all workers; may be used from many threads.
    """

    def __init__(self, url: str, settings: Settings, blobs: BlobStore | None = None) -> None:
        self._settings = settings
        self.client = connect(url)
        self.scripts = Scripts(self.client)
        self.large_values = LargeValues(blobs)
        self.finder = Finder(self.client, self.scripts, self.large_values)
        self.keys = ApiKeys(self.client, self.scripts)
        self.outbox = Outbox(self.client, self.scripts, self.large_values, days=settings.webhook_days)
        self.quotas = Quotas(self.client, self.scripts, settings)
        self.query_budget = QueryBudget(self.client, self.scripts)
        self.losses = Losses(self.scripts, self.client, settings)
        self.schema = Schema(self.client, self.scripts)
        self.retention = Retention(self.client, self.scripts, settings)
        self.workers = Workers(self.scripts, settings)
        self.probes = Probes(self.client)
        self.count_pools = CountPools(self.scripts, settings)

    def accept(
        self,
        submission: Submission,
        *,
        idempotency: tuple[str, str] | None = None,
        usage: QuotaUsage = NO_USAGE,
    ) -> tuple[Job, bool]:
        """Store a new job; true where it is new, false where its key and digest were known.

        `IdempotencyMismatch` where the key was used with another digest, `QueueFull` where too many jobs
        wait, `TenantQueueFull` where too many of the tenant's do, `BudgetSpent` where its passes would exceed
        the quota, `StorageFull` where its bytes would.
        """
        name = secrets.token_hex(16)
        self.large_values.put(encode_value(submission.parameters))
        verdict, *rest = self._accept(name, submission, idempotency, usage)
        if verdict != "new":
            return self.large_values.complete(codec.decode_job(rest[0])), verdict == "created"
        version, at, *left = rest
        self.quotas.headroom.note(submission.tenant, left)
        return codec.build_new_job(name, version, submission, at), True

    def check(
        self,
        submission: Submission,
        *,
        idempotency: tuple[str, str] | None = None,
        usage: QuotaUsage = NO_USAGE,
    ) -> None:
        """Raise what `accept` would raise now; nothing is written. Nothing is asked either where the last
        acceptance has left plenty of everything.
        """
        size = usage.input_bytes + usage.output_bytes
        if idempotency or not self.quotas.headroom.is_plenty(submission.tenant, usage.passes, size):
            self._accept("", submission, idempotency, usage)

    def _accept(
        self, name: str, submission: Submission, idempotency: tuple[str, str] | None, usage: QuotaUsage
    ) -> list[Any]:
        """The verdict of the script and what came with it."""
        key, digest = idempotency or ("", "")
        large = measure(encode_value(submission.parameters))
        stored = submission.model_copy(update={"parameters": {}}) if large else submission
        quota = self.quotas.of(submission.tenant)
        answer: list[Any] = self.scripts.run(
            "jobs/accept",
            name,
            stored.model_dump_json(),
            submission.kind,
            submission.method,
            submission.model.id,
            _milliseconds(submission.deadline or self._settings.deadline),
            self._settings.queue_limit,
            _milliseconds(REDISPATCH_SECONDS),
            hashlib.sha256(f"{submission.tenant} {key}".encode()).hexdigest() if key else "",
            digest,
            _milliseconds(self._settings.idempotency_days * 86_400),
            submission.tenant,
            submission.webhook or "",
            usage.passes,
            "" if quota.waiting is None else quota.waiting,
            "" if quota.passes is None else quota.passes,
            usage.input_bytes,
            usage.output_bytes,
            "" if quota.storage is None else quota.storage,
            encode_reference(large),
        )
        if answer[0] in ("new", "created", "known", "fits"):
            return answer
        self.quotas.headroom.forget(submission.tenant)
        raise self._refusal(answer[0], answer[1:], quota)

    def _refusal(self, verdict: str, rest: Sequence[int], quota: Quota) -> Failure:
        """Why a job was not accepted, and after how many seconds to try again."""
        if verdict == "mismatch":
            return IdempotencyMismatch(
                "Idempotency-Key: it was used before with another request; use a new one"
            )
        if verdict == "spent":
            after = math.ceil(rest[0] / 1000)
            return BudgetSpent(
                f"the job's passes and those of today are more than {quota.passes:,}; "
                f"the day ends in {after:,} s, at midnight UTC",
                retry_after=after,
            )
        if verdict == "stored":
            return storage_full(rest[0], quota)
        # The longer the oldest job has waited, the later a free place is likely.
        after = min(60, max(1, rest[0] // 10_000))
        if verdict == "crowded":
            return TenantQueueFull(
                f"{quota.waiting:,} jobs of yours are waiting, as many as allowed; try again in {after} s",
                retry_after=after,
            )
        limit = self._settings.queue_limit
        return QueueFull(
            f"{limit:,} jobs are waiting, as many as allowed; try again in {after} s", retry_after=after
        )

    def read(self, job: str) -> Job:
        """The job in its present state; `UnknownJob` where there is none, `UnreadableJob` where another
        version wrote it.
        """
        with map_redis_errors():
            stored: Any = self.client.hgetall(f"ts:job:{job}")
        if not stored:
            raise UnknownJob.for_id(job)
        return self.large_values.complete(codec.read_job(job, stored))

    def tenants(self, jobs: Sequence[str]) -> dict[str, str]:
        """The tenants of these jobs, read in one round trip; without jobs that do not exist."""
        with map_redis_errors(), self.client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(f"ts:job:{job}", "tenant")
            answers = zip(jobs, pipe.execute(), strict=True)
        return {job: tenant for job, tenant in answers if tenant}

    def count_ahead(self, job: str) -> int:
        """How many jobs start before this one if none ends meanwhile; 0 where it no longer waits."""
        return int(self.scripts.run("jobs/ahead", job))

    def progress(self, jobs: Collection[str]) -> dict[str, Progress]:
        """The progress of these jobs, read in one round trip; without jobs that do not exist."""
        with map_redis_errors(), self.client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(f"ts:job:{job}", "done", "total")
            answers = zip(jobs, pipe.execute(), strict=True)
        return {job: Progress(done=int(done), total=int(total)) for job, (done, total) in answers if done}

    def claim(
        self,
        job: str,
        worker: str,
        *,
        token: str | None = None,
        busy_tenants: Collection[str] = (),
        level: int = 0,
    ) -> Job | None:
        """Claim the next job of the queue that this job waits in; None where none waits there.

        A worker gets only jobs of models that it serves, and none of `busy_tenants`; raises `NoFreeSlot`
        where only these wait. A process of suspects gets those of a `level` (`Job.losses`). With a `token` of
        the caller's own, a call repeated after a lost answer gets the same claim. The job is without its
        large values: see `LargeValues.complete`. One that cannot be read is set aside, and the next claimed.
        """
        lease, busy = _milliseconds(self._settings.lease), json.dumps(list(busy_tenants))
        token = token or secrets.token_hex(8)
        group = level, COHORTS.get(level, 0)
        served = self._settings.served_models
        while pairs := self.scripts.run("jobs/claim", job, worker, token, lease, busy, *group, *served):
            if pairs == "crowded":
                raise NoFreeSlot
            try:
                return codec.decode_job(pairs)
            except codec.DECODE_ERRORS as error:
                self.losses.set_aside(codec.decode_pairs(pairs), error)
        return None

    def renew(self, worker: str, jobs: Mapping[str, int]) -> dict[str, LeaseVerdict]:
        """Extend the leases of running jobs, given as id and claim; returns what each should do."""
        if not jobs:
            return {}
        pairs = [part for pair in jobs.items() for part in pair]
        lease = _milliseconds(self._settings.lease)
        verdicts = self.scripts.run("jobs/renew", worker, lease, self.losses.max_gap, *pairs)
        return dict(zip(jobs, verdicts, strict=True))

    def report(
        self, job: str, attempt: int, progress: Progress, metric: Mapping[str, float] | None = None
    ) -> bool:
        """Record a job's progress, and a metric if there is one; false where the claim is no longer valid."""
        return self.report_all([(job, attempt, progress, metric)])[0]

    def report_all(self, reports: Iterable[ProgressReport]) -> list[bool]:
        """Record many reports in one step."""
        groups = [
            (job, attempt, *codec.encode_report(progress, metric))
            for job, attempt, progress, metric in reports
        ]
        accepted = (
            self.scripts.run("jobs/report", *(part for group in groups for part in group)) if groups else []
        )
        return [answer == 1 for answer in accepted]

    def finish(
        self,
        job: str,
        attempt: int,
        *,
        status: Status,
        result: Mapping[str, Any] | LargeValue | None = None,
        error: JobFailure | None = None,
        timings: Timings | None = None,
        artifacts: Mapping[str, Artifact] | None = None,
        last_report: ProgressReport | None = None,
    ) -> bool:
        """End a job, after its last report if there is one; false where the claim is no longer valid. A large
        result is stored before: see `LargeValues.keep_result`.

        A job whose cancellation was granted meanwhile ends as canceled, whatever the `status`.
        """
        parts = codec.encode_outcome(result, error, timings, artifacts or {})
        report = codec.encode_report(last_report[2], last_report[3]) if last_report else ("", "", "")
        return bool(self.scripts.run("jobs/finish", job, attempt, status, *report, *parts))

    def release(self, job: str, attempt: int) -> bool:
        """Return a running job to the queue as if it had not been attempted; false where another claim holds
        it.
        """
        return bool(self.scripts.run("jobs/release", job, attempt))

    def cancel(self, job: str) -> Job:
        """End a waiting job, or request the end of a running one; `JobConflict` where it ended otherwise."""
        [answer] = self.cancel_all([job])
        if answer.refusal:
            raise answer.refusal
        return self.read(job)

    def cancel_all(self, jobs: Sequence[str]) -> list[Cancellation]:
        """Cancel many jobs in one step; those that cannot be canceled do not affect the others."""
        statuses = self.scripts.run("jobs/cancel", *jobs) if jobs else []
        return [_to_cancellation(job, status) for job, status in zip(jobs, statuses, strict=True)]

    def delete(self, job: str) -> None:
        """Delete a job; `JobConflict` while it runs."""
        verdict = self.scripts.run("jobs/delete", job)
        if verdict == "unknown":
            raise UnknownJob.for_id(job)
        if verdict == "running":
            raise JobConflict("the job is running; cancel it before deleting it")

    def reap(self) -> ReapResult:
        """Take jobs from workers that fell silent; returns them, and the jobs to dispatch again."""
        to_dispatch, lost = self.scripts.run(
            "jobs/reap",
            *self.losses.limits(),
            _milliseconds(REDISPATCH_SECONDS),
            MAX_REDISPATCHES,
            QUEUE,
            worker_expiry_ms(self._settings),
            _milliseconds(self._settings.lease),
            self.losses.max_gap,
        )
        return ReapResult(tuple(to_dispatch), tuple(lost))

    def events(self, job: str, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        """A job's events after the event `after`, oldest first; `UnknownJob` where there is no such job."""
        found = read_events(self.client, job, after, limit)
        if not found:
            self.read(job)
        return found

    def count_by_status(self, tenant: str | None = None) -> dict[Status, int]:
        """How many jobs there are in each status, of all tenants or of one."""
        statuses: tuple[Status, ...] = get_args(Status)
        with map_redis_errors(), self.client.pipeline(transaction=False) as pipe:
            for status in statuses:
                pipe.zcard(_status_index(status, tenant))
            return dict(zip(statuses, pipe.execute(), strict=True))

    def queue(self, tenant: str | None = None) -> QueueState:
        """How many jobs wait, of all tenants or of one, and for how long."""
        depth, milliseconds = self.scripts.run("jobs/queue", _status_index("queued", tenant))
        return QueueState(depth, milliseconds / 1000)

    def dispatch(self, *jobs: str) -> None:
        """Send the message of each job to the workers that serve its model, in one step."""
        pairs = [part for job in jobs for part in (job, build_message(job))]
        self.scripts.run("jobs/dispatch", QUEUE, *pairs)

    def ping(self) -> None:
        """Raise `LedgerUnavailable` where the ledger does not answer."""
        with map_redis_errors():
            self.client.ping()

    def watch(self) -> Watch:
        """Receive every change of a job."""
        return Watch(self.client)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def _status_index(status: Status, tenant: str | None) -> str:
    return f"ts:tenant:{tenant}:status:{status}" if tenant else f"ts:status:{status}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _to_cancellation(job: str, status: Status | Literal[""]) -> Cancellation:
    if not status:
        return Cancellation(job, None, UnknownJob.for_id(job))
    if status in ("running", "canceled"):
        return Cancellation(job, status)
    refused = JobConflict(f"the job has already {status}; only a waiting or running job can be canceled")
    return Cancellation(job, status, refused)
