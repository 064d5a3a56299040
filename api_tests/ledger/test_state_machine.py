"""After any operations in any order, the ledger is in the state of a model without a server.

The model promises that an accepted job exists until it is deleted, ends once and never changes after that,
fails as lost only after three losses alone, and is written only by the claim that holds it.
"""

from __future__ import annotations

import itertools
import os

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from api_tests.support.job_state_model import ALONE, MAX_STRIKES, FairQueueModel, JobModel
from touchstone.errors import IdempotencyMismatch, JobConflict, NoFreeSlot, QueueFull, UnknownJob
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.losses import COHORTS
from touchstone.ledger.quotas import QuotaUsage
from touchstone.ledger.records import Job, JobKind, Progress, Status, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.settings import Settings

WORKERS = st.sampled_from(["ann", "bob"])
SUSPECTS = "sue"
"""A process that runs suspects."""
ANY_WORKER = st.sampled_from(["ann", "bob", SUSPECTS])
LEVELS = range(ALONE + 1)
TENANTS = st.sampled_from(["north", "south"])
CLAIM_OFFSETS = st.sampled_from([0, 0, 0, 0, -1, 1])
"""Added to the number of a claim; anything but 0 makes the claim stale or unknown."""
JobChoice = tuple[int, bool]
JOB_CHOICES = st.tuples(st.integers(0, 99), st.sampled_from([False, False, False, True]))
"""Which job: its position among those that a step is meant for, or now and then among all jobs ever accepted.
"""
MAX_QUEUED = 4
NEEDS = QuotaUsage(input_bytes=1000, output_bytes=1)


class LedgerMachine(RuleBasedStateMachine):
    """A ledger and a model of it, to which the same is done."""

    def __init__(self, ledger: Ledger, server: redis.Redis, submission: Submission) -> None:
        super().__init__()
        self.ledger, self.server, self.submission = ledger, server, submission
        self.jobs: dict[str, JobModel] = {}
        self.keys: dict[tuple[str, str | None], tuple[str, str]] = {}
        self.queue_models = [FairQueueModel(level) for level in LEVELS]
        self.tokens = map(str, itertools.count())
        self.seen: dict[str, Job] = {}
        self.stored: dict[str, dict[str, str]] = {}
        self.touched: set[str] = set()
        self.names = ["no-such-job"]
        server.flushall()

    def pick(self, choice: JobChoice, status: Status) -> tuple[str, JobModel | None]:
        """A job for a step, by name and in the model."""
        position, any_job = choice
        fitting = [] if any_job else [life.id for life in self.with_status(status)]
        names = fitting or self.names
        job = names[position % len(names)]
        return job, self.jobs.get(job)

    def compare(self, job: str, done: object, expected: object) -> None:
        """Both did it, or both did not: then nothing has changed."""
        assert bool(done) == bool(expected)
        if done:
            self.touched.add(job)

    def with_status(self, status: Status) -> list[JobModel]:
        """All jobs of a status."""
        return [life for life in self.jobs.values() if life.status == status]

    @initialize(workers=st.lists(WORKERS, min_size=2, max_size=4), crashed=st.booleans())
    def begin(self, workers: list[str], crashed: bool) -> None:
        """Some jobs run already, some were lost before: random steps would seldom get there."""
        for worker in workers:
            self.accept("attack", "north", None, "")
            self.claim((0, False), worker, [], False)
        for worker in set(workers) if crashed else ():
            self.crash(worker, noticed=True)
        for level in (1, ALONE) if crashed else ():
            self.claim_suspect(level, [])

    @rule(
        kind=st.sampled_from(["attack", "certificate"]),
        tenant=TENANTS,
        key=st.sampled_from([None, "a", "b"]),
        digest=st.sampled_from(["x", "y"]),
    )
    def accept(self, kind: JobKind, tenant: str, key: str | None, digest: str) -> None:
        known, first = self.keys.get((tenant, key), ("", ""))
        idempotency = (key, digest) if key else None
        submission = self.submission.model_copy(update={"kind": kind})
        try:
            job, created = TenantLedger.of(self.ledger, tenant).accept(
                submission, idempotency=idempotency, usage=NEEDS
            )
        except IdempotencyMismatch:
            assert known in self.jobs
            assert digest != first
            return
        except QueueFull:
            assert known not in self.jobs
            assert len(self.with_status("queued")) >= MAX_QUEUED
            return
        assert created == (known not in self.jobs)
        if created:
            self.jobs[job.id] = JobModel(job.id, kind, tenant)
            if key:
                self.keys[tenant, key] = (job.id, digest)
            self.names.append(job.id)
        assert created or (job.id, digest) == (known, first)

    @rule(which=JOB_CHOICES, worker=WORKERS, busy_tenants=st.lists(TENANTS, max_size=2), again=st.booleans())
    def claim(self, which: JobChoice, worker: str, busy_tenants: list[str], again: bool) -> None:
        dispatched, life = self.pick(which, "running" if again else "queued")
        token = life.token if again and life and life.token else next(self.tokens)
        known = next((life for life in self.with_status("running") if life.token == token), None)
        taken = known or self.queue_models[0].next_job(self.jobs.values(), busy_tenants)
        try:
            claimed = self.ledger.claim(dispatched, worker, token=token, busy_tenants=busy_tenants)
        except NoFreeSlot:
            assert not taken
            assert self.waiting(0)
            return
        if taken and not known:
            self.take_turn(taken, worker, token)
        assert (taken and taken.id) == (claimed and claimed.id)

    @rule(level=st.sampled_from(LEVELS[1:]), busy_tenants=st.lists(TENANTS, max_size=2))
    def claim_suspect(self, level: int, busy_tenants: list[str]) -> None:
        token, beside = next(self.tokens), self.run_by(SUSPECTS)
        admitted = len(beside) < COHORTS[level] and all(life.losses == level for life in beside)
        taken = self.queue_models[level].next_job(self.jobs.values(), busy_tenants) if admitted else None
        try:
            claimed = self.ledger.claim("", SUSPECTS, token=token, busy_tenants=busy_tenants, level=level)
        except NoFreeSlot:
            assert not taken
            assert not admitted or self.waiting(level)
            return
        if taken:
            self.take_turn(taken, SUSPECTS, token)
        assert (taken and taken.id) == (claimed and claimed.id)

    def take_turn(self, taken: JobModel, worker: str, token: str) -> None:
        """The worker claims the job, as its tenant's turn."""
        taken.claim(worker, token)
        self.queue_models[taken.losses].record_turn(taken.tenant)
        self.touched.add(taken.id)
        self.reset_turns()

    def waiting(self, level: int) -> list[JobModel]:
        """What waits in the queue of a level."""
        return [life for life in self.with_status("queued") if life.losses == level]

    def run_by(self, worker: str) -> list[JobModel]:
        """What a worker runs."""
        return [life for life in self.with_status("running") if life.worker == worker]

    def reset_turns(self) -> None:
        """Where no job waits in a queue, the order of its turns begins anew."""
        for level in LEVELS:
            if not self.waiting(level):
                self.queue_models[level] = FairQueueModel(level)

    @rule(which=JOB_CHOICES, off=CLAIM_OFFSETS, steps=st.lists(st.integers(0, 3), max_size=3))
    def report(self, which: JobChoice, off: int, steps: list[int]) -> None:
        job, life = self.pick(which, "running")
        claim = life.claims + off if life else 1
        accepted = self.ledger.report_all(
            [(job, claim, Progress(done=done, total=3), {"loss": 1.0}) for done in steps]
        )
        for done, written in zip(steps, accepted, strict=True):
            self.compare(job, written, life and life.report(claim, done, 3))

    @rule(chosen=st.lists(JOB_CHOICES, max_size=3), worker=ANY_WORKER, off=CLAIM_OFFSETS)
    def renew(self, chosen: list[JobChoice], worker: str, off: int) -> None:
        lives = dict(self.pick(which, "running") for which in chosen)
        claims = {job: life.claims + off if life else 1 for job, life in lives.items()}
        verdicts = {job: life.renew(worker, claims[job]) if life else "lost" for job, life in lives.items()}
        assert self.ledger.renew(worker, claims) == verdicts

    @rule(which=JOB_CHOICES, off=CLAIM_OFFSETS, status=st.sampled_from(["succeeded", "failed", "canceled"]))
    def finish(self, which: JobChoice, off: int, status: Status) -> None:
        job, life = self.pick(which, "running")
        claim, result = (life.claims if life else 1) + off, {"by": off}
        ended = self.ledger.finish(job, claim, status=status, result=result)
        self.compare(job, ended, life and life.finish(claim, status, result))

    @rule(which=JOB_CHOICES, off=CLAIM_OFFSETS)
    def release(self, which: JobChoice, off: int) -> None:
        job, life = self.pick(which, "running")
        claim = life.claims + off if life else 1
        self.compare(job, self.ledger.release(job, claim), life and life.release(claim))

    @rule(which=JOB_CHOICES)
    def cancel(self, which: JobChoice) -> None:
        job, life = self.pick(which, "running")
        try:
            self.ledger.cancel(job)
        except UnknownJob:
            assert life is None
        except JobConflict:
            self.compare(job, False, life is None or life.request_cancel())
        else:
            self.compare(job, True, life and life.request_cancel())

    @rule(which=JOB_CHOICES)
    def delete(self, which: JobChoice) -> None:
        job, life = self.pick(which, "succeeded")
        try:
            self.ledger.delete(job)
        except UnknownJob:
            assert life is None
        except JobConflict:
            assert life is not None
            assert life.status == "running"
        else:
            assert life is not None
            assert life.status != "running"
            del self.jobs[job]

    @rule(which=JOB_CHOICES)
    def expire(self, which: JobChoice) -> None:
        """As if it had ended long ago."""
        job, life = self.pick(which, "succeeded")
        if life is not None and life.ended:
            self.server.zadd("ts:ended", {job: 1})
            assert self.ledger.retention.expire() == 1
            del self.jobs[job]

    @rule(jumped=st.sampled_from([False, False, True]))
    def reap(self, jumped: bool) -> None:
        """Look for lost leases; `jumped`: as if the server had stood still before."""
        for position, life in enumerate(self.with_status("queued")):  # as if dispatched long ago
            self.server.zadd("ts:bells", {life.id: position + 1})
        before = int(self.server.time()[0]) * 1000 - 10_000 * jumped  # type: ignore[index]
        self.server.set("ts:reaped", before)
        reaped = self.ledger.reap()
        assert set(reaped.lost) == self.reap_models(jumped)
        self.touched |= set(reaped.lost)
        assert set(reaped.to_dispatch) == {life.id for life in self.waiting(0)}

    def reap_models(self, jumped: bool) -> set[str]:
        """Take what silent workers ran, and what others let go; returns it."""
        groups = [group for worker in (*["ann", "bob"], SUSPECTS) if (group := self.run_by(worker))]
        silent = [group for group in groups if all(life.silent for life in group)]
        lost = [life for group in groups for life in group if life.silent]
        companies = {life.id: len(group) for group in silent for life in group}
        for life in lost:
            life.run_out(companies.get(life.id, 1), innocent=jumped or len(silent) > 1)
        return {life.id for life in lost}

    @rule(worker=ANY_WORKER, noticed=st.booleans())
    def crash(self, worker: str, noticed: bool) -> None:
        """As if the worker had died and its leases had run out."""
        for life in self.run_by(worker):
            life.silent = True
            self.server.zadd("ts:leases", {life.id: 1})
        if noticed:
            self.reap(False)

    @rule(worker=ANY_WORKER, positions=st.sets(st.integers(0, 3), max_size=2))
    def lose(self, worker: str, positions: set[int]) -> None:
        """Whoever watches a worker says that it was lost, and at which of its jobs, if that is known."""
        jobs = self.run_by(worker)
        suspects = [life for position, life in enumerate(jobs) if position in positions]
        lost = self.ledger.losses.lose(worker, [life.id for life in suspects])
        assert set(lost) == {life.id for life in jobs}
        self.touched |= set(lost)
        for life in jobs:
            if life in (suspects or jobs):
                life.lose(len(suspects or jobs))
            else:
                life.attempts -= 1
                life.queue_again()

    @rule(which=JOB_CHOICES, off=CLAIM_OFFSETS, leaves=st.booleans())
    def give_up(self, which: JobChoice, off: int, leaves: bool) -> None:
        """Its worker lives on without it."""
        job, life = self.pick(which, "running")
        claim = life.claims + off if life else 1
        held = life is not None and life.holds(claim)
        if leaves:
            self.compare(job, self.ledger.losses.leave(job, claim), life and life.leave(claim))
        elif life is None or life.let_go != claim:
            self.compare(job, self.ledger.losses.let_go(job, claim), held)
            if life is not None and held:
                life.let_go = claim
                life.lose(1)

    @rule(which=JOB_CHOICES)
    def pass_deadline(self, which: JobChoice) -> None:
        """As if its deadline were over."""
        job, life = self.pick(which, "running")
        if life is not None and life.status == "running":
            life.overdue = True
            self.server.hset(f"ts:job:{job}", "due", 1)

    @invariant()
    def every_job_matches_the_model(self) -> None:
        with self.server.pipeline(transaction=False) as pipe:
            for job in self.jobs:
                pipe.hgetall(f"ts:job:{job}")
            stored = dict(zip(self.jobs, pipe.execute(), strict=True))
        for job, life in self.jobs.items():
            before = self.seen.get(job)
            # Decoding takes most of the time, and equal hashes are equal jobs.
            found = before if before and stored[job] == self.stored[job] else self.ledger.read(job)
            assert life.matches(found)
            assert found.strikes <= MAX_STRIKES
            assert before is None or found.losses >= before.losses
            if before is not None and (job not in self.touched or before.finished_at):
                assert found == before
            self.seen[job] = found
        self.stored = stored
        self.touched.clear()
        self.reset_turns()

    @invariant()
    def every_index_matches_the_model(self) -> None:
        of = {status: {one.id for one in self.with_status(status)} for status in STATUSES}
        assert self.ledger.count_by_status() == {status: len(jobs) for status, jobs in of.items()}
        assert set(self.server.zrange("ts:leases", 0, -1)) == of["running"]
        assert set(self.server.zrange("ts:bells", 0, -1)) == of["queued"]
        waiting = {level: len(self.waiting(level)) for level in LEVELS[1:] if self.waiting(level)}
        assert self.ledger.losses.count_waiting() == waiting
        held = self.server.hget("ts:references", self.submission.source)
        assert int(held or 0) == len({life.tenant for life in self.jobs.values()})

    @invariant()
    def tenants_see_only_their_own_jobs(self) -> None:
        for tenant, other in (("north", "south"), ("south", "north")):
            own = [job for job, life in self.jobs.items() if life.tenant == tenant]
            assert [job.id for job in TenantLedger.of(self.ledger, tenant).find(limit=200).jobs] == own[::-1]
            under_way = sum(not self.jobs[job].ended for job in own)
            assert (
                TenantLedger.of(self.ledger, tenant).storage()[0]
                == bool(own) * NEEDS.input_bytes + under_way * NEEDS.output_bytes
            )
            for job in own[-1:]:
                with pytest.raises(UnknownJob):
                    TenantLedger.of(self.ledger, other).cancel(job)

    def teardown(self) -> None:
        for job, life in self.jobs.items():
            check_events(self.ledger, job, life)
        for job in self.seen.keys() - self.jobs.keys():
            with pytest.raises(UnknownJob):
                self.ledger.read(job)


STATUSES: tuple[Status, ...] = ("queued", "running", "succeeded", "failed", "canceled")


def check_events(ledger: Ledger, job: str, life: JobModel) -> None:
    """A job's events record its life once and in order; progress goes back only where an attempt begins."""
    events = ledger.events(job)
    versions = [event.data["version"] for event in events if event.type == "status"]
    assert versions == sorted(set(versions))
    assert [event.type for event in events].count("completed") == life.ended
    assert not life.ended or events[-1].type == "completed"
    done = 0
    for event in events:
        if (
            event.type == "status"
            and event.data["status"] == "running"
            and not event.data["cancel_requested"]
        ):
            done = 0
        if event.type == "progress":
            assert event.data["done"] >= done
            done = event.data["done"]


def test_ledger_matches_the_job_state_model_after_any_operations(
    valkey: str, submission: Submission, settings: Settings
) -> None:
    ledger, server = Ledger(valkey, settings.model_copy(update={"queue_limit": MAX_QUEUED})), connect(valkey)
    run_state_machine_as_test(lambda: LedgerMachine(ledger, server, submission), settings=PROFILE)
    server.close()
    ledger.close()


FUZZING = "TOUCHSTONE_FUZZ" in os.environ
PROFILE = settings(
    max_examples=1_000 if FUZZING else 30,
    phases=[Phase.generate],  # shrinking takes minutes
    stateful_step_count=60,
    derandomize=not FUZZING,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
