"""A job, from the bell to the ledger's last word."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

from touchstone.errors import (
    Canceled,
    Crowded,
    DeadlineExceeded,
    Failure,
    LedgerUnavailable,
    OutOfMemory,
    StorageFull,
    UnknownJob,
    WorkerStopping,
)
from touchstone.evaluation.certificate_result import pool_of
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Artifact, Job, Problem, Progress, Submission, Timings
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.logs import bound, get_logger
from touchstone.memory import lacks_memory
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Reached, Shown
from touchstone.models.store import ZOO, Shelf
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs
from workers.claimed_job import Cancelable, Held
from workers.lease_keeper import Keeper
from workers.slots import Places
from workers.trials import Trials

CLAIM_SECONDS = 10.0
RETRY_SECONDS = 0.2
STORE_SECONDS = 30.0

_log = get_logger("runner")
T = TypeVar("T")


class Ended(Protocol):
    """What a job leaves behind; `touchstone.evaluation.run.Finished` is one."""

    @property
    def result(self) -> dict[str, Any]:
        """The contract's result object."""

    @property
    def artifacts(self) -> Mapping[str, tuple[bytes, str]]:
        """Bytes and media type by name."""

    @property
    def timings(self) -> Timings:
        """Seconds of the phases that the run knows."""

    @property
    def counts(self) -> dict[str, Any] | None:
        """What another job may go on from."""

    @property
    def canceled(self) -> bool:
        """Whether a cancel ended it, with what was shown until then."""


class Run(Protocol):
    """Runs one job to its end; `touchstone.evaluation.run.run` bound to an engine is one."""

    def __call__(
        self,
        submission: Submission,
        png: bytes,
        *,
        deadline: float | None,
        started: Callable[[Cancelable], None],
        report: Callable[[Progress, dict[str, float]], None],
        prior: dict[str, Any] | None,
    ) -> Ended:
        """Blocks; raises `Failure`."""


@dataclass(frozen=True)
class Runner:
    """Answers a bell: claims the job whose turn it is, runs it, writes its files and then its end.

    Files come before the end that names them, so that a job which ended has them. What ends under a claim
    that is no longer held leaves no trace in the ledger.
    """

    ledger: Ledger
    blobs: Blobs
    keeper: Keeper
    run: Run
    settings: Settings
    shelf: Shelf = ZOO
    trials: Trials = field(default_factory=Trials)

    @cached_property
    def places(self) -> Places:
        """Who runs how many jobs here."""
        return Places(self.settings.concurrency)

    def __call__(self, job: str) -> None:
        """Run a job, of those that wait where the bell was rung; if none does, there is nothing to do."""
        with ExitStack() as place:
            held = self._take(job, place)
            if held is None:
                return
            end = self._attempt(held)
            try:
                self._conclude(held, end)
            except LedgerUnavailable as error:
                _log.warning("a job's end was not written", reason=error.detail)

    def _take(self, job: str, place: ExitStack) -> Held | None:
        with self.places.door:
            claimed = self._claim(job)
            if claimed is None:
                return None
            held = Held(claimed)
            tenant = claimed.submission.tenant
            place.enter_context(bound(job=claimed.id, tenant=tenant, attempt=claimed.attempts))
            place.enter_context(self.places.taken(tenant))
            place.enter_context(self.keeper.keep(held))
            return held

    def _claim(self, job: str) -> Job | None:
        token = secrets.token_hex(8)

        def ask() -> Job | None:
            crowd = self.places.crowd()
            return self.ledger.claim(job, self.keeper.worker, token=token, crowd=crowd)

        while not self.keeper.stopping:
            try:
                return self._insist(ask, seconds=CLAIM_SECONDS)
            except Crowded:
                self.places.wait()
            except LedgerUnavailable:
                break  # the bell will be rung again
        return None

    def _attempt(self, held: Held) -> dict[str, Any] | None:
        """How the job ends, as the ledger takes it; None where it goes back to the queue or was lost."""
        try:
            registers = held.job.submission.kind == "registration"
            ended = self._registration(held) if registers else self._pooled_run(held)
            if ended.canceled and held.reason in ("stopping", "lost"):
                return None
            return self._succeed(held, ended)
        except Exception as error:  # noqa: BLE001 - a fault of ours ends the job, its traceback belongs in the log
            if lacks_memory(error):
                return self._fail(held, OutOfMemory("the worker's memory does not hold what this job needs"))
            if isinstance(error, Failure):
                return self._fail(held, error)
            _log.exception("a job broke")
            # Files and devices fail for reasons that are no job's.
            passing = isinstance(error, OSError) and not held.reason and self._leaves(held)
            return None if passing else _INTERNAL

    def _pooled_run(self, held: Held) -> Ended:
        """Run the job, going on from what equal questions have counted before it, and keep its counts for
        the next.
        """
        submission = held.job.submission
        pool = pool_of(submission, self.shelf)
        if pool is None:
            return self._run(held, submission, None)
        known = self._insist(lambda: self.ledger.pooled(pool, submission.seed))
        ended = self._run(held, submission.model_copy(update={"seed": known.seed}), known.counts)
        if counts := ended.counts:
            self._insist(lambda: self.ledger.pool(pool, counts))
        return ended

    def _registration(self, held: Held) -> Ended:
        """Try a model, and let it be used only if nobody has given up on it meanwhile."""
        submission = held.job.submission
        card = Manifest.model_validate(submission.parameters)
        if card.kind == "remote":
            return self._remote_registration(held, card)
        read = partial(self.blobs.get, submission.source)
        tried = self.trials(submission, read, self.settings, started=held.started, report=held.report)
        self._register(held, tried.card, tried.examined, size=self.blobs.size(submission.source))
        self._insist(lambda: self.ledger.note_probe(tried.card.digest, tried.examined))
        return tried.finished()

    def _remote_registration(self, held: Held, card: Manifest) -> Ended:
        """The same for a model behind an address, which the engine asks."""
        ended = self._run(held, held.job.submission, None)
        self._register(held, card, Reached.model_validate(ended.result["probe"]))
        return ended

    def _register(self, held: Held, card: Manifest, found: Shown, *, size: int = 0) -> None:
        versions, claim = (
            Holdings.of(self.ledger, held.job.submission.tenant).versions,
            (held.job.id, held.job.claims),
        )
        if held.reason or not self._insist(lambda: versions.register(card, found, size=size, claim=claim)):
            raise Canceled("the job was canceled")

    def _run(self, held: Held, submission: Submission, prior: dict[str, Any] | None) -> Ended:
        return self.run(
            submission,
            self.blobs.get(submission.source),
            deadline=submission.deadline or self.settings.deadline,
            started=held.started,
            report=held.report,
            prior=prior,
        )

    def _succeed(self, held: Held, ended: Ended) -> dict[str, Any]:
        submission = held.job.submission
        begun = time.perf_counter()
        artifacts = self._store(ended.artifacts)
        timings = {"queued": _waited(held.job), "write": time.perf_counter() - begun}
        return {
            "status": "canceled" if ended.canceled else "succeeded",
            "result": {**ended.result, **self._comparison(submission.rerun_of, ended.result, artifacts)},
            "artifacts": artifacts,
            "timings": ended.timings.model_copy(update=timings),
        }

    def _comparison(
        self, origin: str | None, result: Mapping[str, Any], artifacts: Mapping[str, Artifact]
    ) -> dict[str, Any]:
        """Whether a rerun left the same bytes as the job that it repeats; null where that one was deleted, or
        where the two did not count equally far for reasons of their own.
        """
        if origin is None:
            return {}
        try:
            first = self._insist(lambda: self.ledger.read(origin))
        except UnknownJob:
            return {"rerun": {"of": origin, "agrees": None}}
        before = first.result or {}
        agrees = first.artifacts == artifacts and _answer(before) == _answer(result)
        return {"rerun": {"of": origin, "agrees": agrees if _comparable(before, result) else None}}

    def _store(self, files: Mapping[str, tuple[bytes, str]]) -> dict[str, Artifact]:
        data = [data for data, _ in files.values()]
        digests = self._insist(lambda: self.blobs.put_many(data), seconds=STORE_SECONDS)
        return {
            name: Artifact(digest=digest, media_type=media_type, size=len(data))
            for digest, (name, (data, media_type)) in zip(digests, files.items(), strict=True)
        }

    def _fail(self, held: Held, failure: Failure) -> dict[str, Any] | None:
        if held.reason in ("stopping", "lost") or isinstance(failure, WorkerStopping):
            return None
        if held.reason == "overdue":
            failure = DeadlineExceeded("the job ran longer than its deadline allowed")
        elif held.reason == "canceled" or isinstance(failure, Canceled):
            return {"status": "canceled"}
        elif isinstance(failure, _PASSING) and self._leaves(held):
            return None
        _log.info("a job failed", code=failure.code)
        return {"status": "failed", "error": _problem(failure)}

    def _leaves(self, held: Held) -> bool:
        """Leave a job to another attempt, if there may be one: nobody renews the lease, and when it has run
        out, the job is tried again, perhaps elsewhere.
        """
        if held.job.attempts >= self.settings.max_attempts:
            return False
        _log.warning("a job is left to another attempt")
        held.end("lost")
        return True

    def _conclude(self, held: Held, end: Mapping[str, Any] | None) -> None:
        job = held.job
        if end is None:
            if held.reason != "lost":
                self._insist(lambda: self.ledger.release(job.id, job.claims), seconds=RETRY_SECONDS)
            return
        last = held.take_report()
        try:
            held_on = self._insist(lambda: self.ledger.finish(job.id, job.claims, **end, last=last))
        except (TypeError, ValueError):  # a result that is no JSON
            _log.exception("a job broke")
            held_on = self._insist(lambda: self.ledger.finish(job.id, job.claims, **_INTERNAL))
        if held_on:
            _log.info("a job ended", status=end["status"])
        else:
            _log.warning("a job ended after its claim was lost")

    def _insist(self, action: Callable[[], T], *, seconds: float = float("inf")) -> T:
        """Try again while the ledger is out of reach or the disk full, for so long or until the worker stops.

        Work that is done must not be thrown away because the ledger restarts meanwhile.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                return action()
            except (LedgerUnavailable, StorageFull):
                if self.keeper.stopping or time.monotonic() > end:
                    raise
                time.sleep(RETRY_SECONDS)


def _answer(result: Mapping[str, Any]) -> list[Any]:
    """What a rerun must find again: the model's answer, or the votes that were counted."""
    votes = result.get("sampling", {}).get("counts_top5")
    return [*map(result.get, ("original", "smoothed", "predicted_class", "radius")), votes]


def _comparable(before: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """False where a deadline, or counts that were there already, made two certificates end at different
    samples.
    """
    counts = [one.get("sampling", {}) for one in (before, result)]
    late = any(one.get("stopped_by") == DeadlineExceeded.code for one in (before, result))
    chance = late or any(count.get("pooled") for count in counts)
    return not chance or counts[0].get("n_used") == counts[1].get("n_used")


def _waited(job: Job) -> float:
    return (job.started_at - job.created_at).total_seconds() if job.started_at else 0.0


def _problem(failure: Failure) -> Problem:
    extra = failure.extra if failure.field is None else {"field": failure.field, **failure.extra}
    return Problem(code=failure.code, detail=failure.detail, extra=extra)


_PASSING = (OutOfMemory, StorageFull)
"""What may be the trouble of this worker at this moment, and not the job's."""

_INTERNAL: dict[str, Any] = {
    "status": "failed",
    "error": Problem(code=Failure.code, detail="the service made a mistake with this job; its log says more"),
}
