"""One job, from its dispatch to its end in the ledger."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from touchstone.engine.noise_streams import find_stream
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
from touchstone.evaluation.run import JobOutcome
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.losses import ALONE
from touchstone.ledger.records import Artifact, Job, JobFailure
from touchstone.logs import bind_fields, get_logger
from touchstone.memory import is_out_of_memory
from touchstone.models.store import ZOO, ModelStore
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs
from workers.claimed_job import ClaimedJob
from workers.execution import Execution, RunJob
from workers.lease_keeper import LeaseKeeper
from workers.retries import RETRY_SECONDS, Retries
from workers.slots import JobSlots
from workers.trials import Trials

Claim = Callable[[dict[str, Any]], Job | None]
"""Claims a job, given worker, token and busy tenants."""

CLAIM_SECONDS = 10.0
STORE_SECONDS = 30.0

OTHER_STREAM = "the original drew its noise from another stream than this version does"
"""Why a rerun may differ, and tells nothing by it."""

_log = get_logger("runner")


@dataclass(frozen=True)
class Runner:
    """Handles a dispatch: claims the next job, has it run, stores its files and then its end.

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
    def _retries(self) -> Retries:
        return Retries(self.keeper)

    @cached_property
    def _execution(self) -> Execution:
        return Execution(
            self.ledger, self.blobs, self.run, self.settings, self.store, self.trials, self._retries
        )

    @cached_property
    def slots(self) -> JobSlots:
        """The slots of this worker."""
        return JobSlots(self.settings.concurrency)

    def __call__(self, job: str) -> None:
        """Run the next job of the queue of the dispatched one, if any is waiting."""
        self._run_next(lambda claim: self.ledger.claim(job, **claim))

    def run_suspect(self, level: int) -> None:
        """Run the next suspect of a level, if any is waiting."""
        self._run_next(lambda claim: self.ledger.claim("", level=level, **claim))

    def _run_next(self, claim: Claim) -> None:
        with ExitStack() as stack:
            claimed = self._claim_slot(claim, stack)
            if claimed is None:
                return
            end = self._attempt(claimed)
            try:
                self._conclude(claimed, end)
            except LedgerUnavailable as error:
                _log.warning("a job's end was not written", reason=error.detail)

    def _claim_slot(self, claim: Claim, stack: ExitStack) -> ClaimedJob | None:
        with self.slots.claim_lock:
            claimed = self._claim(claim)
            if claimed is None:
                return None
            claimed_job = ClaimedJob(claimed)
            tenant = claimed.submission.tenant
            stack.enter_context(bind_fields(job=claimed.id, tenant=tenant, attempt=claimed.attempts))
            stack.enter_context(self.slots.occupy(tenant))
            stack.enter_context(self.keeper.hold(claimed_job))
            return claimed_job

    def _claim(self, claim: Claim) -> Job | None:
        token = secrets.token_hex(8)

        def claim_once() -> Job | None:
            busy = self.slots.busy_tenants()
            return claim({"worker": self.keeper.worker, "token": token, "busy_tenants": busy})

        while not self.keeper.stopping:
            try:
                return self._retries(claim_once, seconds=CLAIM_SECONDS)
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
            claimed.job = self.ledger.large_values.complete(claimed.job)
            outcome = self._execution(claimed)
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
            if isinstance(error, OSError) and not claimed.stop_reason and self._leave_to_retry(claimed):
                return None
            return _INTERNAL_ERROR

    def _succeed(self, claimed: ClaimedJob, outcome: JobOutcome) -> dict[str, Any]:
        submission = claimed.job.submission
        begun = time.perf_counter()
        artifacts = self._store_artifacts(outcome.artifacts)
        compared = self._compare_rerun(submission.rerun_of, outcome.result, artifacts)
        result = self._retries(
            lambda: self.ledger.large_values.keep_result({**outcome.result, **compared}),
            seconds=STORE_SECONDS,
        )
        timings = {"queued": _queue_seconds(claimed.job), "write": time.perf_counter() - begun}
        return {
            "status": "canceled" if outcome.canceled else "succeeded",
            "result": result,
            "artifacts": artifacts,
            "timings": outcome.timings.model_copy(update=timings),
        }

    def _compare_rerun(
        self, origin: str | None, result: Mapping[str, Any], artifacts: Mapping[str, Artifact]
    ) -> dict[str, Any]:
        """Whether a rerun gave the same files and values as the original job; null if that was deleted, or if
        the two are not comparable, and `reason` says so if they drew their noise from different streams.
        """
        if origin is None:
            return {}
        try:
            first = self._retries(lambda: self.ledger.read(origin))
        except UnknownJob:
            return {"rerun": {"of": origin, "agrees": None}}
        before = first.result or {}
        agrees = first.artifacts == artifacts and _reproduced_values(before) == _reproduced_values(result)
        if not agrees and find_stream(before) != find_stream(result):
            return {"rerun": {"of": origin, "agrees": None, "reason": OTHER_STREAM}}
        return {"rerun": {"of": origin, "agrees": agrees if _are_comparable(before, result) else None}}

    def _store_artifacts(self, files: Mapping[str, tuple[bytes, str]]) -> dict[str, Artifact]:
        data = [data for data, _ in files.values()]
        digests = self._retries(lambda: self.blobs.put_many(data), seconds=STORE_SECONDS)
        return {
            name: Artifact(digest=digest, media_type=media_type, size=len(data))
            for digest, (name, (data, media_type)) in zip(digests, files.items(), strict=True)
        }

    def _fail(self, claimed: ClaimedJob, failure: Failure) -> dict[str, Any] | None:
        if claimed.stop_reason in ("stopping", "lost") or isinstance(failure, WorkerStopping):
            return None
        if claimed.stop_reason == "overdue":
            late = isinstance(failure, DeadlineExceeded)  # then it says more
            failure = failure if late else DeadlineExceeded("the job ran longer than its deadline allowed")
        elif claimed.stop_reason == "canceled" or isinstance(failure, JobCanceled):
            return {"status": "canceled"}
        elif self._try_again(claimed, failure):
            return None
        _log.info("a job failed", code=failure.code)
        return {"status": "failed", "error": _problem(failure)}

    def _try_again(self, claimed: ClaimedJob, failure: Failure) -> bool:
        """Whether it is tried again: what failed may be the present state of this worker, not the job."""
        if isinstance(failure, OutOfMemory):
            return self._try_alone(claimed)
        return isinstance(failure, StorageFull) and self._leave_to_retry(claimed)

    def _leave_to_retry(self, claimed: ClaimedJob) -> bool:
        """Leave a job to another attempt, if it has one left: its lease is no longer renewed, and after its
        expiry any worker may try the job again.
        """
        job = claimed.job
        if job.retries + 1 >= self.settings.max_attempts:
            return False
        _log.warning("a job is left to another attempt")
        self._retries(lambda: self.ledger.losses.leave(job.id, job.claims), seconds=RETRY_SECONDS)
        claimed.request_stop("lost")
        return True

    def _try_alone(self, claimed: ClaimedJob) -> bool:
        """Have a job tried where it has a process to itself, unless that was so often enough."""
        job = claimed.job
        if job.losses == ALONE and job.strikes + 1 >= self.settings.max_attempts:
            return False
        _log.warning("a job is left to a process of its own")
        self._retries(lambda: self.ledger.losses.let_go(job.id, job.claims), seconds=RETRY_SECONDS)
        claimed.request_stop("lost")
        return True

    def _conclude(self, claimed: ClaimedJob, end: Mapping[str, Any] | None) -> None:
        job = claimed.job
        if end is None:
            if claimed.stop_reason != "lost":
                self._retries(lambda: self.ledger.release(job.id, job.claims), seconds=RETRY_SECONDS)
            return
        last = claimed.take_report()
        ended = self._retries(lambda: self.ledger.finish(job.id, job.claims, **end, last_report=last))
        if ended:
            _log.info("a job ended", status=end["status"])
        else:
            _log.warning("a job ended after its claim was lost")


def _reproduced_values(result: Mapping[str, Any]) -> list[Any]:
    """What a rerun must reproduce: the prediction, or the counted votes."""
    votes = result.get("sampling", {}).get("counts_top5")
    return [*map(result.get, ("original", "smoothed", "predicted_class", "radius")), votes]


def _are_comparable(before: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """False if a deadline ended an attack, or if a deadline or counts of earlier jobs made two certificates
    end at different numbers of samples.
    """
    counts = [one.get("sampling", {}) for one in (before, result)]
    overdue = any(one.get("stopped_by") == DeadlineExceeded.code for one in (before, result))
    if overdue and not any(counts):
        return False
    differing = overdue or any(count.get("pooled") for count in counts)
    return not differing or counts[0].get("n_used") == counts[1].get("n_used")


def _queue_seconds(job: Job) -> float:
    return (job.started_at - job.created_at).total_seconds() if job.started_at else 0.0


def _problem(failure: Failure) -> JobFailure:
    extra = failure.extra if failure.field is None else {"field": failure.field, **failure.extra}
    return JobFailure(code=failure.code, detail=failure.detail, extra=extra)


_INTERNAL_ERROR: dict[str, Any] = {
    "status": "failed",
    "error": JobFailure(
        code=Failure.code, detail="the service made a mistake with this job; its log says more"
    ),
}
