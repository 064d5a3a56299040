"""The life of a job as a state machine: after any calls in any order, it matches a small model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings as profile, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from touchstone.errors import JobConflict, NoFreeSlot
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.losses import ALONE
from touchstone.ledger.records import TERMINAL, ImageRef, ModelRef, Progress, Status, Submission
from touchstone.settings import Settings

SUBMISSION = Submission(
    kind="attack",
    method="pgd",
    model=ModelRef(id="digits", digest="d"),
    image=ImageRef(digest="d", width=8, height=8, channels=1),
    parameters={},
)


@contextmanager
def expect_conflict(when: bool) -> Iterator[None]:
    if not when:
        yield
        return
    with pytest.raises(JobConflict):
        yield


class JobLifecycleMachine(RuleBasedStateMachine):
    """One job, several workers, and the state that the job should be in."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.ledger = Ledger(str(settings.redis_url), settings)
        self.server = connect(str(settings.redis_url))
        self.job = self.ledger.accept(SUBMISSION)[0].id
        self.status: Status = "queued"
        self.attempts = self.claims = self.done = self.losses = self.strikes = 0
        self.canceling = False
        self.version = 0

    def teardown(self) -> None:
        self.ledger.close()
        self.server.close()

    def holds(self, claim: int) -> bool:
        return self.status == "running" and claim == self.claims

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def claim(self, worker: str) -> None:
        try:
            claimed = self.ledger.claim(self.job, worker, level=self.losses)
        except NoFreeSlot:  # a process runs one suspect of the last level
            assert (self.status, self.losses) == ("running", ALONE)
            return
        assert (claimed is not None) == (self.status == "queued")
        if claimed is not None:
            self.status, self.done = "running", 0
            self.attempts += 1
            self.claims += 1

    @rule(claim=st.integers(0, 4), done=st.integers(0, 9))
    def report(self, claim: int, done: int) -> None:
        assert self.ledger.report(self.job, claim, Progress(done=done, total=9)) == self.holds(claim)
        if self.holds(claim):
            self.done = max(self.done, done)

    @rule(claim=st.integers(1, 4), status=st.sampled_from(["succeeded", "failed", "canceled"]))
    @precondition(lambda self: self.status not in TERMINAL)
    def finish(self, claim: int, status: Status) -> None:
        assert self.ledger.finish(self.job, claim, status=status) == self.holds(claim)
        if self.holds(claim):
            self.status = "canceled" if self.canceling else status

    @rule(claim=st.integers(1, 4))
    def finish_too_late(self, claim: int) -> None:
        if self.status in TERMINAL:
            self.ledger.finish(self.job, claim, status="succeeded", result={"late": True})

    @rule()
    def release(self) -> None:
        running = self.status == "running"
        self.ledger.release(self.job, self.claims)
        if running:
            self.status = "canceled" if self.canceling else "queued"
            self.attempts -= 1

    @rule()
    def cancel(self) -> None:
        with expect_conflict(self.status in ("succeeded", "failed")):
            self.ledger.cancel(self.job)
        self.canceling = self.canceling or self.status in ("queued", "running")
        if self.status == "queued":
            self.status = "canceled"

    @rule(silent=st.booleans())
    def reap(self, silent: bool) -> None:
        if silent and self.status == "running":
            self.server.zadd("ts:leases", {self.job: 1})
        lost = self.ledger.reap().lost
        assert bool(lost) == (silent and self.status == "running")
        if lost:  # a suspect's process ended with its worker
            self.losses = ALONE
            self.status = "canceled" if self.canceling else "queued"

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def lose(self, worker: str) -> None:
        if self.ledger.losses.lose(worker):
            self.strikes += self.losses == ALONE
            self.losses = ALONE
            spent = self.strikes == self.settings.max_attempts
            self.status = "canceled" if self.canceling else "failed" if spent else "queued"

    @invariant()
    def ledger_matches_the_model(self) -> None:
        job = self.ledger.read(self.job)
        assert (job.status, job.attempts, job.claims) == (self.status, self.attempts, self.claims)
        assert job.progress.done == self.done
        assert (job.losses, job.strikes) == (self.losses, self.strikes)
        assert job.version >= self.version
        assert (job.finished_at is not None) == (job.status in TERMINAL)
        assert job.result is None, "no claim that held the job finished it with a result"
        self.version = job.version

    @invariant()
    def indexes_match_the_model(self) -> None:
        counts = self.ledger.count_by_status()
        assert counts[self.status] == sum(counts.values()) == 1
        assert self.server.zcard("ts:leases") == (self.status == "running")
        assert self.server.zcard("ts:bells") == (self.status == "queued")

    @invariant()
    def completed_event_is_recorded_once(self) -> None:
        ends = [event for event in self.ledger.events(self.job) if event.type == "completed"]
        assert len(ends) == (self.status in TERMINAL)


def test_job_lifecycle_matches_a_small_model_after_any_operations(settings: Settings) -> None:
    def life() -> JobLifecycleMachine:
        connect(str(settings.redis_url)).flushall()
        return JobLifecycleMachine(settings)

    run_state_machine_as_test(
        life, settings=profile(max_examples=30, stateful_step_count=25, deadline=None, database=None)
    )
