"""Who is suspected where a worker is lost: innocent jobs end, and what ends its workers is found out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import redis

from api_tests.ledger.test_state_machine import LEVELS, SUSPECTS, JobChoice, LedgerMachine
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.losses import COHORTS
from touchstone.ledger.records import Job, Submission
from touchstone.settings import Settings

SLOTS = 96
LEASE_MS = 5_000
FEW = range(4)


@dataclass
class Storm:
    """A worker and its process of suspects, both of which a poison ends as soon as it runs there."""

    ledger: Ledger
    poisons: set[str]
    deaths: int = 0
    runs: list[str] = field(default_factory=list)

    def run_worker(self, job: str) -> None:
        """Run what waits; the supervisor notices a death, as it does where the process alone is lost."""
        claims = (self.ledger.claim(job, "worker") for _ in range(SLOTS))
        self._run([one for one in claims if one], "worker")

    def run_suspects(self, level: int) -> None:
        """Run one cohort of a level."""
        claims = (self.ledger.claim("", "suspects", level=level) for _ in range(COHORTS[level]))
        self._run([one for one in claims if one], "suspects")

    def _run(self, claimed: list[Job], worker: str) -> None:
        self.runs += [one.id for one in claimed]
        if self.poisons & {one.id for one in claimed}:
            self.deaths += 1
            self.ledger.losses.lose(worker)
            return
        for one in claimed:
            assert self.ledger.finish(one.id, one.claims, status="succeeded", result={})


@pytest.mark.parametrize(("jobs", "killers"), [(1, 1), (96, 1), (96, 3), (40, 10)])
def test_innocents_end_and_each_poison_is_found_out_within_its_bound(
    ledger: Ledger, submission: Submission, settings: Settings, jobs: int, killers: int
) -> None:
    names = [ledger.accept(submission)[0].id for _ in range(jobs)]
    poisons = set(names[:: max(1, jobs // killers)][:killers])
    storm = Storm(ledger, poisons)
    while ledger.count_by_status()["queued"]:
        storm.run_worker(names[0])
        for level in COHORTS:
            storm.run_suspects(level)
    ended = {name: ledger.read(name) for name in names}
    assert {name for name, job in ended.items() if job.status == "failed"} == poisons
    errors = [ended[name].error for name in poisons]
    assert {error.code for error in errors if error} == {"worker_lost"}
    assert storm.deaths <= killers * (3 + settings.max_attempts)
    assert all(storm.runs.count(name) <= 4 for name in set(names) - poisons), "three losses, then alone"


def claim_all(ledger: Ledger, submission: Submission, *workers: str) -> list[Job]:
    jobs = [ledger.accept(submission)[0].id for _ in workers]
    claimed = [ledger.claim(job, worker) for job, worker in zip(jobs, workers, strict=True)]
    return [one for one in claimed if one]


def set_lease(server: redis.Redis, job: Job, milliseconds: float) -> None:
    """Let the lease of a job run out in so many milliseconds."""
    now = int(server.time()[0]) * 1000  # type: ignore[index]
    server.zadd("ts:leases", {job.id: now + milliseconds})


def test_worker_that_is_silent_is_lost_only_when_its_last_lease_has_run_out(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    first, last = claim_all(ledger, submission, "w1", "w1")
    set_lease(server, first, -2_000)
    set_lease(server, last, 900)
    assert ledger.reap().lost == (), "it may have died just after a renewal, which is not yet known"
    set_lease(server, last, -1_000)
    assert set(ledger.reap().lost) == {first.id, last.id}
    assert [ledger.read(job.id).losses for job in (first, last)] == [1, 1]


def test_job_that_a_living_worker_no_longer_renews_is_tried_alone(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    first, other = claim_all(ledger, submission, "w1", "w1")
    set_lease(server, first, -1_000)
    assert ledger.reap().lost == (first.id,)
    assert [ledger.read(job.id).losses for job in (first, other)] == [3, 0]


def test_workers_that_fall_silent_together_charge_nobody(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    first, second = claim_all(ledger, submission, "w1", "w2")
    set_lease(server, first, -1_000)
    set_lease(server, second, 900)
    assert ledger.reap().lost == (first.id,)
    assert ledger.read(first.id).losses == 0
    assert ledger.claim(first.id, "w3"), "it waits for any worker"


@pytest.mark.parametrize("hours", [-1, 1])
def test_clock_that_steps_an_hour_costs_no_job_its_deadline_or_a_strike(
    ledger: Ledger, submission: Submission, server: redis.Redis, hours: int
) -> None:
    """What a step leaves: every stored time is an hour off."""
    [job] = claim_all(ledger, submission, "w1")
    step = 3_600_000 * hours
    ledger.reap()
    server.hincrby(f"ts:job:{job.id}", "due", -step)
    server.zincrby("ts:leases", -step, job.id)
    server.incrby("ts:reaped", -step)
    assert ledger.renew("w1", {job.id: job.claims}) == {job.id: "fine"}
    server.zincrby("ts:leases", -step, job.id)
    ledger.reap()
    after = ledger.read(job.id)
    assert (after.losses, after.strikes) == (0, 0)
    lease = server.zscore("ts:leases", job.id)
    assert lease is None or float(lease) <= int(server.time()[0]) * 1000 + LEASE_MS + 1_000  # type: ignore[arg-type, index]
    again = ledger.claim(job.id, "w1") or after
    ledger.reap()
    assert ledger.renew("w1", {job.id: again.claims}) == {job.id: "fine"}


def test_waiting_jobs_are_dispatched_after_the_clock_was_set_back(
    ledger: Ledger, job: Job, server: redis.Redis
) -> None:
    ledger.reap()
    server.zadd("ts:bells", {job.id: server.zscore("ts:bells", job.id) + 3_600_000})  # type: ignore[operator]
    server.incrby("ts:reaped", 3_600_000)
    assert job.id in (*ledger.reap().to_dispatch, *ledger.reap().to_dispatch)


def test_rate_limit_forgets_what_was_spent_before_the_clock_was_set_back(
    ledger: Ledger, server: redis.Redis
) -> None:
    hour = 3_600_000_000
    ledger.scripts.run("tenants/rate", "reads", "north", 60)
    server.incrby("ts:rate:reads:north", hour)
    granted, _, _ = ledger.scripts.run("tenants/rate", "reads", "north", 60)
    assert granted == 1


@pytest.mark.parametrize("seed", range(8))
def test_lost_jobs_match_the_model(ledger: Ledger, submission: Submission, valkey: str, seed: int) -> None:
    """Only what loses jobs: where other steps also end them, few are lost three times."""
    server, draw = connect(valkey), random.Random(seed)
    machine = LedgerMachine(ledger, server, submission)

    def which() -> JobChoice:
        return draw.randrange(100), False

    steps: dict[Callable[[], object], int] = {
        lambda: machine.claim(which(), draw.choice(["ann", "bob"]), [], False): 4,
        lambda: machine.claim_suspect(draw.choice(LEVELS[1:]), []): 16,
        lambda: machine.crash(draw.choice(["ann", "bob"]), draw.random() < 0.5): 2,
        lambda: machine.crash(SUSPECTS, True): 1,
        lambda: machine.lose(draw.choice(["ann", SUSPECTS]), set(draw.sample(FEW, draw.randrange(3)))): 4,
        lambda: machine.give_up(which(), 0, draw.random() < 0.3): 1,
        lambda: machine.reap(draw.random() < 0.5): 2,
    }
    for number in range(12):
        machine.accept("attack", draw.choice(["north", "south"]), None, str(number))
    for _ in range(150):
        draw.choices(list(steps), list(steps.values()))[0]()
        machine.every_job_matches_the_model()
    machine.every_index_matches_the_model()
    server.close()
