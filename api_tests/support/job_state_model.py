"""A job's life as it should be: the rules once more, without a server, to hold the ledger against."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from touchstone.ledger.records import TERMINAL, Job, JobKind, Status

MAX_ATTEMPTS = 3


@dataclass
class JobModel:
    """One job, and what may be seen of it."""

    id: str
    kind: JobKind
    tenant: str
    status: Status = "queued"
    attempts: int = 0
    claims: int = 0
    cancel_requested: bool = False
    done: int = 0
    total: int = 0
    result: dict[str, Any] | None = None
    error: str | None = None
    worker: str = ""
    token: str = ""
    overdue: bool = False
    silent: bool = False
    finished_claim: int | None = None
    released_claim: int | None = None

    def matches(self, job: Job) -> bool:
        """Whether a job in the ledger looks like this."""
        mine = (
            self.status,
            self.attempts,
            self.claims,
            self.cancel_requested,
            self.done,
            self.total,
            self.result,
        )
        progress = job.progress
        theirs = (job.status, job.attempts, job.claims, job.cancel_requested, progress.done, progress.total)
        error = job.error.code if job.error else None
        return mine == (*theirs, job.result) and error == self.error and self.ended == bool(job.finished_at)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL

    def claim(self, worker: str, token: str) -> None:
        """A worker takes it."""
        self.status, self.worker, self.token = "running", worker, token
        self.attempts, self.claims, self.done, self.total = self.attempts + 1, self.claims + 1, 0, 0
        self.overdue = self.silent = False

    def holds(self, claim: int) -> bool:
        """Whether this claim may write."""
        return self.status == "running" and self.claims == claim

    def report(self, claim: int, done: int, total: int) -> bool:
        """Progress comes, which never goes back."""
        if self.holds(claim) and done >= self.done:
            self.done, self.total = done, total
        return self.holds(claim)

    def renew(self, worker: str, claim: int) -> str:
        """What a worker hears of it."""
        if not self.holds(claim) or self.worker != worker:
            return "lost"
        self.silent = False
        return "canceled" if self.cancel_requested else "overdue" if self.overdue else "fine"

    def finish(self, claim: int, status: Status, result: dict[str, Any]) -> bool:
        """An attempt ends it, unless another holds it; a cancellation that was granted stays."""
        if claim == self.finished_claim:
            return True
        if not self.holds(claim):
            return False
        self.finished_claim = claim
        if not self.cancel_requested or (self.kind == "certificate" and status != "failed"):
            self.result = result
        self.status = "canceled" if self.cancel_requested else status
        return True

    def release(self, claim: int) -> bool:
        """An attempt gives it back, uncounted."""
        if claim == self.released_claim:
            return True
        if not self.holds(claim):
            return False
        self.released_claim, self.attempts = claim, self.attempts - 1
        self.status = "canceled" if self.cancel_requested else "queued"
        return True

    def request_cancel(self) -> bool:
        """A client cancels it."""
        if self.ended:
            return self.status == "canceled"
        self.cancel_requested = True
        if self.status == "queued":
            self.status = "canceled"
        return True

    def reap(self) -> bool:
        """It is taken from a worker that fell silent."""
        if self.status != "running" or not self.silent:
            return False
        if self.cancel_requested:
            self.status = "canceled"
        elif self.attempts >= MAX_ATTEMPTS:
            self.status, self.error = "failed", "worker_lost"
        else:
            self.status = "queued"
        return True


@dataclass
class FairQueueModel:
    """Whose turn it is: the tenant's that runs the fewest, then its whose last turn is the longest ago."""

    last_turns: dict[str, int] = field(default_factory=dict)

    def next_job(self, jobs: Iterable[JobModel], busy_tenants: Collection[str]) -> JobModel | None:
        """The oldest of that tenant's jobs, but none of the crowd's; lives come in the order of birth."""
        everybody = list(jobs)
        running = [life.tenant for life in everybody if life.status == "running"]
        waiting = [life for life in everybody if life.status == "queued" and life.tenant not in busy_tenants]

        def place(life: JobModel) -> tuple[int, int, str]:
            return running.count(life.tenant), self.last_turns.get(life.tenant, 0), life.tenant

        return min(waiting, key=place, default=None)

    def record_turn(self, tenant: str) -> None:
        """A tenant had its turn."""
        self.last_turns[tenant] = max(self.last_turns.values(), default=0) + 1
