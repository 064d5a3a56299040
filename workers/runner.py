"""One job, from its dispatch to its end in the ledger."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

from touchstone.errors import (
    DeadlineExceeded,
    Failure,
    JobCanceled,
    LedgerUnavailable,
    NoFreeSlot,
    OutOfMemory,
    StorageFull,
    UnknownJob,
    WorkerStopping,
)
from touchstone.evaluation.certificate_result import pool_key
from touchstone.evaluation.run import JobOutcome
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Artifact, Job, JobFailure, Progress, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.logs import bind_fields, get_logger
from touchstone.memory import is_out_of_memory
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RegistrationProbe, RemoteProbe
from touchstone.models.store import ZOO, ModelStore
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs
from workers.claimed_job import Cancelable, ClaimedJob
from workers.lease_keeper import LeaseKeeper
from workers.slots import JobSlots
from workers.trials import Trials

CLAIM_SECONDS = 10.0
RETRY_SECONDS = 0.2
STORE_SECONDS = 30.0

_log = get_logger("runner")
T = TypeVar("T")


class RunJob(Protocol):
    """Runs one job to its end; `touchstone.evaluation.run.run_job` bound to an engine is one."""

    def __call__(
        self,
        submission: Submission,
        png: bytes,
        *,
        deadline: float | None,
        started: Callable[[Cancelable], None],
        report: Callable[[Progress, dict[str, float]], None],
        prior: dict[str, Any] | None,
    ) -> JobOutcome:
        """Blocks; raises `Failure`."""


@dataclass(frozen=True)
class Runner:
    """Handles a dispatch: claims the next job, runs it, stores its files and then its end.

    Files are stored before the end that names them, so that every job that ended has them. An end under a
    lost claim is ignored by the ledger.
    """

    ledger: Ledger
    blobs: Blobs
    keeper: LeaseKeeper
    run: RunJob
    settings: Settings
    store: ModelStore = ZOO
    trials: Trials = field(default_factory=Trials)

    @cached_property
    def slots(self) -> JobSlots:
        """The slots of this worker."""
        return JobSlots(self.settings.concurrency)

    def __call__(self, job: str) -> None:
        """Run the next job of the queue of the dispatched one, if any is waiting."""
        with ExitStack() as stack:
            claimed = self._claim_slot(job, stack)
            if claimed is None:
                return
            end = self._attempt(claimed)
            try:
                self._conclude(claimed, end)
            except LedgerUnavailable as error:
                _log.warning("a job's end was not written", reason=error.detail)

    def _claim_slot(self, job: str, stack: ExitStack) -> ClaimedJob | None:
        with self.slots.claim_lock:
            claimed = self._claim(job)
            if claimed is None:
                return None
            claimed_job = ClaimedJob(claimed)
            tenant = claimed.submission.tenant
            stack.enter_context(bind_fields(job=claimed.id, tenant=tenant, attempt=claimed.attempts))
            stack.enter_context(self.slots.occupy(tenant))
            stack.enter_context(self.keeper.hold(claimed_job))
            return claimed_job

    def _claim(self, job: str) -> Job | None:
        token = secrets.token_hex(8)

        def claim() -> Job | None:
            busy = self.slots.busy_tenants()
            return self.ledger.claim(job, self.keeper.worker, token=token, busy_tenants=busy)

        while not self.keeper.stopping:
            try:
                return self._retry(claim, seconds=CLAIM_SECONDS)
            except NoFreeSlot:
                self.slots.wait()
            except LedgerUnavailable:
                break  # the job will be dispatched again
        return None

    def _attempt(self, claimed: ClaimedJob) -> dict[str, Any] | None:
        """The end of the job as `Ledger.finish` takes it; None if it goes back to the queue or its claim was
        lost.
        """
        try:
            registers = claimed.job.submission.kind == "registration"
            outcome = self._run_registration(claimed) if registers else self._run_pooled(claimed)
            if outcome.canceled and claimed.stop_reason in ("stopping", "lost"):
                return None
            return self._succeed(claimed, outcome)
        except Exception as error:  # noqa: BLE001 - a defect ends the job, and its traceback is logged
            if is_out_of_memory(error):
                return self._fail(
                    claimed, OutOfMemory("the worker's memory does not hold what this job needs")
                )
            if isinstance(error, Failure):
                return self._fail(claimed, error)
            _log.exception("a job broke")
            # Files and devices fail for reasons outside of the job.
            retried = isinstance(error, OSError) and not claimed.stop_reason and self._leave_to_retry(claimed)
            return None if retried else _INTERNAL_ERROR

    def _run_pooled(self, claimed: ClaimedJob) -> JobOutcome:
        """Run the job, starting from the counts of earlier jobs with the same question, and store its counts
        for the next.
        """
        submission = claimed.job.submission
        pool = pool_key(submission, self.store)
        if pool is None:
            return self._run(claimed, submission, None)
        known = self._retry(lambda: self.ledger.read_pool(pool, submission.seed))
        outcome = self._run(claimed, submission.model_copy(update={"seed": known.seed}), known.counts)
        if counts := outcome.counts:
            self._retry(lambda: self.ledger.extend_pool(pool, counts))
        return outcome

    def _run_registration(self, claimed: ClaimedJob) -> JobOutcome:
        """Try a model, and register it unless the job was stopped meanwhile."""
        submission = claimed.job.submission
        manifest = Manifest.model_validate(submission.parameters)
        if manifest.kind == "remote":
            return self._run_remote_registration(claimed, manifest)
        read = partial(self.blobs.get, submission.source)
        outcome = self.trials(
            submission, read, self.settings, started=claimed.add_task, report=claimed.report
        )
        self._register(claimed, outcome.manifest, outcome.probe, size=self.blobs.size(submission.source))
        self._retry(lambda: self.ledger.store_probe(outcome.manifest.digest, outcome.probe))
        return outcome.job_outcome()

    def _run_remote_registration(self, claimed: ClaimedJob, manifest: Manifest) -> JobOutcome:
        """The same for a remote model, which the engine queries."""
        outcome = self._run(claimed, claimed.job.submission, None)
        self._register(claimed, manifest, RemoteProbe.model_validate(outcome.result["probe"]))
        return outcome

    def _register(
        self, claimed: ClaimedJob, manifest: Manifest, probe: RegistrationProbe, *, size: int = 0
    ) -> None:
        versions = TenantLedger.of(self.ledger, claimed.job.submission.tenant).versions
        claim = claimed.job.id, claimed.job.claims
        if claimed.stop_reason or not self._retry(
            lambda: versions.register(manifest, probe, size=size, claim=claim)
        ):
            raise JobCanceled("the job was canceled")

    def _run(self, claimed: ClaimedJob, submission: Submission, prior: dict[str, Any] | None) -> JobOutcome:
        return self.run(
            submission,
            self.blobs.get(submission.source),
            deadline=submission.deadline or self.settings.deadline,
            started=claimed.add_task,
            report=claimed.report,
            prior=prior,
        )

    def _succeed(self, claimed: ClaimedJob, outcome: JobOutcome) -> dict[str, Any]:
        submission = claimed.job.submission
        begun = time.perf_counter()
        artifacts = self._store_artifacts(outcome.artifacts)
        timings = {"queued": _queue_seconds(claimed.job), "write": time.perf_counter() - begun}
        return {
            "status": "canceled" if outcome.canceled else "succeeded",
            "result": {
                **outcome.result,
                **self._compare_rerun(submission.rerun_of, outcome.result, artifacts),
            },
            "artifacts": artifacts,
            "timings": outcome.timings.model_copy(update=timings),
        }

    def _compare_rerun(
        self, origin: str | None, result: Mapping[str, Any], artifacts: Mapping[str, Artifact]
    ) -> dict[str, Any]:
        """Whether a rerun gave the same files and values as the original job; null if that was deleted, or if
        the two are not comparable.
        """
        if origin is None:
            return {}
        try:
            first = self._retry(lambda: self.ledger.read(origin))
        except UnknownJob:
            return {"rerun": {"of": origin, "agrees": None}}
        before = first.result or {}
        agrees = first.artifacts == artifacts and _reproduced_values(before) == _reproduced_values(result)
        return {"rerun": {"of": origin, "agrees": agrees if _are_comparable(before, result) else None}}

    def _store_artifacts(self, files: Mapping[str, tuple[bytes, str]]) -> dict[str, Artifact]:
        data = [data for data, _ in files.values()]
        digests = self._retry(lambda: self.blobs.put_many(data), seconds=STORE_SECONDS)
        return {
            name: Artifact(digest=digest, media_type=media_type, size=len(data))
            for digest, (name, (data, media_type)) in zip(digests, files.items(), strict=True)
        }

    def _fail(self, claimed: ClaimedJob, failure: Failure) -> dict[str, Any] | None:
        if claimed.stop_reason in ("stopping", "lost") or isinstance(failure, WorkerStopping):
            return None
        if claimed.stop_reason == "overdue":
            failure = DeadlineExceeded("the job ran longer than its deadline allowed")
        elif claimed.stop_reason == "canceled" or isinstance(failure, JobCanceled):
            return {"status": "canceled"}
        elif isinstance(failure, _TRANSIENT) and self._leave_to_retry(claimed):
            return None
        _log.info("a job failed", code=failure.code)
        return {"status": "failed", "error": _problem(failure)}

    def _leave_to_retry(self, claimed: ClaimedJob) -> bool:
        """Leave a job to another attempt, if it has one left: its lease is no longer renewed, and after its
        expiry any worker may try the job again.
        """
        if claimed.job.attempts >= self.settings.max_attempts:
            return False
        _log.warning("a job is left to another attempt")
        claimed.request_stop("lost")
        return True

    def _conclude(self, claimed: ClaimedJob, end: Mapping[str, Any] | None) -> None:
        job = claimed.job
        if end is None:
            if claimed.stop_reason != "lost":
                self._retry(lambda: self.ledger.release(job.id, job.claims), seconds=RETRY_SECONDS)
            return
        last = claimed.take_report()
        try:
            ended = self._retry(lambda: self.ledger.finish(job.id, job.claims, **end, last_report=last))
        except (TypeError, ValueError):  # a result that JSON cannot express
            _log.exception("a job broke")
            ended = self._retry(lambda: self.ledger.finish(job.id, job.claims, **_INTERNAL_ERROR))
        if ended:
            _log.info("a job ended", status=end["status"])
        else:
            _log.warning("a job ended after its claim was lost")

    def _retry(self, action: Callable[[], T], *, seconds: float = float("inf")) -> T:
        """Retry while the ledger is unreachable or the disk full, for so many seconds or until the worker
        stops.

        Finished work must not be lost because the ledger restarts meanwhile.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                return action()
            except (LedgerUnavailable, StorageFull):
                if self.keeper.stopping or time.monotonic() > end:
                    raise
                time.sleep(RETRY_SECONDS)


def _reproduced_values(result: Mapping[str, Any]) -> list[Any]:
    """What a rerun must reproduce: the prediction, or the counted votes."""
    votes = result.get("sampling", {}).get("counts_top5")
    return [*map(result.get, ("original", "smoothed", "predicted_class", "radius")), votes]


def _are_comparable(before: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """False if a deadline, or counts of earlier jobs, made two certificates end at different numbers of
    samples.
    """
    counts = [one.get("sampling", {}) for one in (before, result)]
    overdue = any(one.get("stopped_by") == DeadlineExceeded.code for one in (before, result))
    differing = overdue or any(count.get("pooled") for count in counts)
    return not differing or counts[0].get("n_used") == counts[1].get("n_used")


def _queue_seconds(job: Job) -> float:
    return (job.started_at - job.created_at).total_seconds() if job.started_at else 0.0


def _problem(failure: Failure) -> JobFailure:
    extra = failure.extra if failure.field is None else {"field": failure.field, **failure.extra}
    return JobFailure(code=failure.code, detail=failure.detail, extra=extra)


_TRANSIENT = (OutOfMemory, StorageFull)
"""Failures that may be caused by the present state of this worker, not by the job."""

_INTERNAL_ERROR: dict[str, Any] = {
    "status": "failed",
    "error": JobFailure(
        code=Failure.code, detail="the service made a mistake with this job; its log says more"
    ),
}
