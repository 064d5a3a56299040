"""The fair queue: which job is claimed next when several tenants wait."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import redis
from hypothesis import settings as profile, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from api_tests.ledger.test_ledger import expire_leases
from touchstone.errors import NoFreeSlot
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Job, ModelRef, Submission
from touchstone.settings import Settings


class QueueSimulation:
    """Tenants that submit, and a worker that takes the job it is given."""

    def __init__(self, ledger: Ledger, submission: Submission) -> None:
        self.ledger, self.submission = ledger, submission
        self.dispatches: list[str] = []
        self.running: list[Job] = []

    def submit(self, tenant: str, jobs: int = 1, model: str = "digits") -> list[str]:
        changes = {"tenant": tenant, "model": ModelRef(id=model, digest="sha256:" + "0" * 64)}
        submission = self.submission.model_copy(update=changes)
        accepted = [self.ledger.accept(submission)[0].id for _ in range(jobs)]
        self.dispatches += accepted
        return accepted

    def claim_next(self) -> Job:
        """Claim by the oldest dispatch."""
        job = self.ledger.claim(self.dispatches.pop(0), "w1")
        assert job is not None
        self.running.append(job)
        return job

    def finish(self, job: Job) -> None:
        self.running.remove(job)
        assert self.ledger.finish(job.id, job.claims, status="succeeded")

    def run_one_by_one(self, jobs: int) -> str:
        """The tenants of so many jobs, of which one runs at a time."""
        tenants = []
        for _ in range(jobs):
            job = self.claim_next()
            tenants.append(job.submission.tenant)
            self.finish(job)
        return "".join(tenants)


@pytest.fixture
def simulation(ledger: Ledger, submission: Submission) -> QueueSimulation:
    return QueueSimulation(ledger, submission)


def test_tenants_take_turns_whatever_the_order_of_dispatch(simulation: QueueSimulation) -> None:
    simulation.submit("a", 8)
    simulation.submit("b", 3)
    simulation.submit("c", 2)
    assert simulation.run_one_by_one(13) == "abcabcabaaaaa"


def test_oldest_job_of_a_tenant_is_claimed_first(simulation: QueueSimulation) -> None:
    first, second = simulation.submit("a", 3), simulation.submit("b", 3)
    started = [simulation.claim_next().id for _ in range(6)]
    assert [name for name in started if name in first] == first
    assert [name for name in started if name in second] == second


def test_free_slot_goes_to_the_tenant_with_the_fewest_running_jobs(simulation: QueueSimulation) -> None:
    simulation.submit("a", 40)
    for _ in range(10):
        simulation.claim_next()
    simulation.submit("b", 40)
    assert [simulation.claim_next().submission.tenant for _ in range(10)] == ["b"] * 10
    simulation.finish(simulation.running[0])
    assert simulation.claim_next().submission.tenant == "a", "nine against ten"
    assert {simulation.claim_next().submission.tenant for _ in range(2)} == {"a", "b"}


def test_flood_of_jobs_costs_another_tenant_one_turn(simulation: QueueSimulation) -> None:
    simulation.submit("a", 300)
    for _ in range(5):
        simulation.run_one_by_one(7)
        [job] = simulation.submit("b")
        assert simulation.ledger.count_ahead(job) <= 1
        assert "b" in simulation.run_one_by_one(2)


def test_tenant_that_resubmits_at_each_start_gets_only_its_turn(simulation: QueueSimulation) -> None:
    simulation.submit("a", 20)
    simulation.submit("b")
    tenants = ""
    for _ in range(10):
        tenants += simulation.run_one_by_one(1)
        if tenants[-1] == "b":
            simulation.submit("b")
    assert tenants == "ab" * 5


def test_repeated_claim_returns_the_same_job_though_another_was_dispatched(
    simulation: QueueSimulation,
) -> None:
    simulation.submit("a", 2)
    simulation.claim_next()
    simulation.submit("b")
    dispatched = simulation.dispatches[0]
    first = simulation.ledger.claim(dispatched, "w1", token="t")
    assert first is not None
    assert first.submission.tenant == "b"
    assert simulation.ledger.claim(dispatched, "w1", token="t") == first
    simulation.ledger.finish(first.id, first.claims, status="succeeded")
    again = simulation.ledger.claim(dispatched, "w1", token="t")
    assert again is not None
    assert again.id == dispatched, "a claim is known for as long as it holds"


def test_dispatch_of_a_deleted_job_claims_a_waiting_one(simulation: QueueSimulation) -> None:
    simulation.submit("a", 2)
    gone = simulation.claim_next()
    simulation.finish(gone)
    simulation.ledger.delete(gone.id)
    assert simulation.ledger.claim(gone.id, "w1") is not None
    assert simulation.ledger.claim(gone.id, "w1") is None


def test_busy_tenants_are_passed_over(simulation: QueueSimulation) -> None:
    [first] = simulation.submit("a")
    with pytest.raises(NoFreeSlot):
        simulation.ledger.claim(first, "w1", busy_tenants=["a", "b"])
    simulation.submit("b")
    simulation.submit("c")
    taken = simulation.ledger.claim(first, "w1", busy_tenants=["a", "b"])
    assert taken is not None
    assert taken.submission.tenant == "c"
    assert simulation.ledger.claim(first, "w1") is not None
    assert simulation.ledger.claim(first, "w1") is not None
    assert simulation.ledger.claim(first, "w1", busy_tenants=["a", "b"]) is None, "nobody waits"


def test_worker_claims_only_jobs_of_models_it_serves(
    settings: Settings, simulation: QueueSimulation, server: redis.Redis
) -> None:
    special = Ledger(str(settings.redis_url), settings.model_copy(update={"models": "digits,letters"}))
    [early] = simulation.submit("a")
    [other] = simulation.submit("a", model="faces")
    special.workers.heartbeat("special", {}, ["digits", "letters"])
    [own] = simulation.submit("a", model="letters")
    taken = [special.claim(dispatched, "special") for dispatched in (own, other, early, other)]
    assert [job and job.id for job in taken] == [own, None, early, None]
    server.delete("ts:served")
    [late] = simulation.submit("a")
    found = special.claim(late, "special")
    assert found is not None, "its dispatch came here, and it serves the model"
    assert found.id == late
    special.close()


@pytest.mark.parametrize("seed", range(5))
def test_predicted_queue_positions_match_the_actual_order(simulation: QueueSimulation, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(chance.randrange(6)):
        simulation.submit(chance.choice("abc"))
        simulation.claim_next()
    for _ in range(15):
        simulation.submit(chance.choice("aaabc"))
    predicted = {job: simulation.ledger.count_ahead(job) for job in simulation.dispatches}
    started = [simulation.claim_next().id for _ in range(15)]
    assert [predicted[job] for job in started] == list(range(15))


class FairQueueMachine(RuleBasedStateMachine):
    """After any operations on jobs of several tenants, the tenant queues hold those that wait, and turns are
    fair.
    """

    def __init__(self, settings: Settings, submission: Submission) -> None:
        super().__init__()
        self.ledger = Ledger(str(settings.redis_url), settings)
        self.server = connect(str(settings.redis_url))
        self.simulation = QueueSimulation(self.ledger, submission)

    def teardown(self) -> None:
        self.ledger.close()
        self.server.close()

    def read_jobs(self) -> dict[str, list[Job]]:
        """All jobs by status, oldest first, without suspects: they wait in queues of their own."""
        known: Any = self.server.zrange("ts:all", 0, -1)
        by_status: dict[str, list[Job]] = {"queued": [], "running": []}
        for job in map(self.ledger.read, known):
            if not job.losses:
                by_status.setdefault(job.status, []).append(job)
        return by_status

    @rule(tenant=st.sampled_from("abc"))
    def accept(self, tenant: str) -> None:
        self.simulation.submit(tenant)

    @rule()
    def claim(self) -> None:
        jobs = self.read_jobs()
        waiting, running = jobs["queued"], count_by_tenant(jobs["running"])
        claimed = self.ledger.claim("any", "w1")
        assert (claimed is None) == (not waiting)
        if claimed is not None:
            tenant = claimed.submission.tenant
            assert running[tenant] == min(running[job.submission.tenant] for job in waiting)
            oldest = next(job for job in waiting if job.submission.tenant == tenant)
            assert claimed.id == oldest.id

    @rule(data=st.data(), way=st.sampled_from(["finish", "release", "cancel", "lose"]))
    def end_running_job(self, data: st.DataObject, way: str) -> None:
        running = self.read_jobs()["running"]
        if not running:
            return
        job = data.draw(st.sampled_from(running))
        if way == "finish":
            self.ledger.finish(job.id, job.claims, status="succeeded")
        elif way == "release":
            self.ledger.release(job.id, job.claims)
        elif way == "cancel":
            self.ledger.cancel(job.id)
        else:
            expire_leases(self.server)
            self.ledger.reap()

    @rule(data=st.data(), way=st.sampled_from(["cancel", "delete"]))
    def withdraw(self, data: st.DataObject, way: str) -> None:
        if waiting := self.read_jobs()["queued"]:
            getattr(self.ledger, way)(data.draw(st.sampled_from(waiting)).id)

    @invariant()
    def tenant_queues_match_the_jobs(self) -> None:
        jobs = self.read_jobs()
        waiting, running = count_by_tenant(jobs["queued"]), count_by_tenant(jobs["running"])
        assert _read_counts(self.server, "ts:running:") == running
        assert set(self.server.zrange("ts:tenants:", 0, -1)) == set(waiting)
        for tenant in "abc":
            expected = [job.id for job in jobs["queued"] if job.submission.tenant == tenant]
            assert self.server.zrange(f"ts:line: {tenant}", 0, -1) == expected
        assert self.server.hlen("ts:claims") == running.total()
        assert waiting or not self.server.exists("ts:turns:")


def count_by_tenant(jobs: list[Job]) -> Counter[str]:
    return Counter(job.submission.tenant for job in jobs)


def _read_counts(server: redis.Redis, key: str) -> dict[str, int]:
    return {name: int(count) for name, count in server.hgetall(key).items()}  # type: ignore[union-attr]


def test_tenant_queues_hold_the_waiting_jobs_after_any_operations(
    settings: Settings, submission: Submission
) -> None:
    def start_machine() -> FairQueueMachine:
        connect(str(settings.redis_url)).flushall()
        return FairQueueMachine(settings, submission)

    run_state_machine_as_test(
        start_machine, settings=profile(max_examples=20, stateful_step_count=25, deadline=None, database=None)
    )
