"""A model of job states and fair queues, without a server; tests compare the ledger with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from touchstone.ledger.records import TERMINAL, Job, JobKind, Status

MAX_STRIKES = 3
MAX_SPARED = 30
ALONE = 3


@dataclass
class JobModel:
    """One job, as the ledger should show it."""

    id: str
    kind: JobKind
    tenant: str
    status: Status = "queued"
    attempts: int = 0
    claims: int = 0
    losses: int = 0
    strikes: int = 0
    spared: int = 0
    retries: int = 0
    left: int | None = None
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
    let_go: int | None = None

    def matches(self, job: Job) -> bool:
        """Whether a job in the ledger is in this state."""
        mine = (
            self.status,
            self.attempts,
            self.claims,
            self.losses,
            self.strikes,
            self.retries,
            self.cancel_requested,
            self.done,
            self.total,
            self.result,
        )
        progress = job.progress
        theirs = (
            *(job.status, job.attempts, job.claims, job.losses, job.strikes, job.retries),
            *(job.cancel_requested, progress.done, progress.total),
        )
        error = job.error.code if job.error else None
        return mine == (*theirs, job.result) and error == self.error and self.ended == bool(job.finished_at)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL

    def claim(self, worker: str, token: str) -> None:
        """A worker claims it."""
        self.status, self.worker, self.token = "running", worker, token
        self.attempts, self.claims, self.done, self.total = self.attempts + 1, self.claims + 1, 0, 0
        self.overdue = self.silent = False

    def holds(self, claim: int) -> bool:
        """Whether this claim may write."""
        return self.status == "running" and self.claims == claim

    def report(self, claim: int, done: int, total: int) -> bool:
        """An attempt reports progress, which never goes back."""
        if self.holds(claim) and done >= self.done:
            self.done, self.total = done, total
        return self.holds(claim)

    def renew(self, worker: str, claim: int) -> str:
        """The verdict of a lease renewal."""
        if not self.holds(claim) or self.worker != worker:
            return "lost"
        self.silent = False
        return "canceled" if self.cancel_requested else "overdue" if self.overdue else "fine"

    def finish(self, claim: int, status: Status, result: dict[str, Any]) -> bool:
        """An attempt ends it, unless another has claimed it; an accepted cancellation stays."""
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
        """An attempt releases it, and does not count."""
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

    def leave(self, claim: int) -> bool:
        """Its worker announces that it will let the lease run out."""
        if self.holds(claim) and self.left != claim:
            self.left, self.retries = claim, self.retries + 1
        return self.holds(claim)

    def queue_again(self) -> None:
        """It waits again, unless it was canceled."""
        self.status = "canceled" if self.cancel_requested else "queued"

    def run_out(self, company: int, *, innocent: bool) -> None:
        """Its lease has run out, and those of so many jobs of its worker."""
        if self.left == self.claims:
            self.queue_again()
            return
        if innocent or self.losses:
            self.spared += 1
            if self.spared <= MAX_SPARED:
                self.queue_again()
                return
        self.lose(company)

    def lose(self, company: int) -> None:
        """It was lost, and with it so many jobs of its worker, itself included."""
        suspect = self.losses > 0
        self.losses = ALONE if company == 1 else min(ALONE, self.losses + 1)
        if suspect and company == 1:
            self.strikes += 1
        if self.strikes >= MAX_STRIKES and not self.cancel_requested:
            self.status, self.error = "failed", "worker_lost"
        else:
            self.queue_again()


@dataclass
class FairQueueModel:
    """Which tenant is next in the queue of a level: the one with the fewest running jobs, then the one whose
    last turn is the longest ago.
    """

    level: int = 0
    last_turns: dict[str, int] = field(default_factory=dict)

    def next_job(self, jobs: Iterable[JobModel], busy_tenants: Collection[str]) -> JobModel | None:
        """The oldest job with the fewest strikes of the next tenant that is not busy; jobs come in the
        order of acceptance.
        """
        all_jobs = [job for job in jobs if job.losses == self.level]
        running = [job.tenant for job in all_jobs if job.status == "running"]
        waiting = [job for job in all_jobs if job.status == "queued" and job.tenant not in busy_tenants]

        def rank(job: JobModel) -> tuple[int, int, str, int]:
            return running.count(job.tenant), self.last_turns.get(job.tenant, 0), job.tenant, job.strikes

        return min(waiting, key=rank, default=None)

    def record_turn(self, tenant: str) -> None:
        """A tenant had its turn."""
        self.last_turns[tenant] = max(self.last_turns.values(), default=0) + 1
