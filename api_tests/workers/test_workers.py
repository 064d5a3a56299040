"""Real Celery workers over a real Valkey: whatever is killed or sent twice, each job ends exactly once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from api_tests.support import fake_worker
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from service.state.dispatch import open_dispatch
from touchstone.ledger import broker
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, TERMINAL, Job, Submission
from touchstone.ledger.server import process_id
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.supervisor import valkey as embedded_valkey
from workers import healthcheck

LEASE = 20.0
"""Seconds for which a worker may stall and keep its jobs; the one that a test kills has fewer."""

MANY_STEPS = 10_000
"""Steps of 20 ms: a job that outlasts its test."""


class WorkerCluster:
    """A home with a Valkey and the workers that a test starts, all of them stopped in the end."""

    def __init__(self, home: Path, submission: Submission) -> None:
        self.home = home
        self.valkeys = [embedded_valkey.start(home)]
        self.url = self.valkeys[0].url
        self.settings = Settings(home=home, lease=LEASE)
        self.ledger = Ledger(self.url, self.settings)
        self.dispatch = open_dispatch(self.ledger)
        digest = open_blobs(self.settings).put(b"PNG")
        self.submission = submission.model_copy(
            update={"image": submission.image.model_copy(update={"digest": digest})}
        )
        self.workers: list[BaseProcess] = []
        self.diary = home / "diary"

    def start_worker(self, *, concurrency: int = 8, **settings: Any) -> BaseProcess:
        worker = fake_worker.start(self.settings.model_copy(update={"concurrency": concurrency, **settings}))
        self.workers.append(worker)
        wait_until(lambda: worker.pid in self.pids() or worker.exitcode is not None)
        assert worker.is_alive(), self.log()
        return worker

    def pids(self) -> set[int]:
        return {worker.info["pid"] for worker in self.ledger.workers.alive()}

    def restart_valkey(self) -> None:
        pid = process_id(self.url)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.valkeys[-1].is_alive())
        self.valkeys.append(embedded_valkey.start(self.home))

    def accept(self, *, dispatches: int = 1, tenant: str = LOCAL, **parameters: Any) -> str:
        changes = {"tenant": tenant, "parameters": {"steps": 1, "diary": str(self.diary), **parameters}}
        job, _ = self.ledger.accept(self.submission.model_copy(update=changes))
        assert all(self.dispatch(job.id) for _ in range(dispatches))
        return job.id

    def read(self, job: str) -> Job:
        return self.ledger.read(job)

    def count_diary_entries(self) -> Counter[str]:
        return Counter(self.diary.read_text().split()) if self.diary.exists() else Counter()

    def count_messages(self) -> int:
        """Messages waiting in the broker."""
        return int(connect(self.url).llen(broker.QUEUE))  # type: ignore[arg-type]

    def log(self) -> str:
        return (self.home / "workers.log").read_text()

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.join()
        self.ledger.close()
        for valkey in self.valkeys:
            valkey.stop()


def stop_worker(worker: BaseProcess, signum: signal.Signals) -> int | None:
    """Stop a worker with a signal; returns its exit code."""
    assert worker.pid is not None
    os.kill(worker.pid, signum)
    worker.join(TIMEOUT_SECONDS)
    return worker.exitcode


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, submission: Submission) -> Iterator[WorkerCluster]:
    cluster = WorkerCluster(tmp_path_factory.mktemp("y"), submission)
    yield cluster
    cluster.close()


def test_job_dispatched_twice_runs_once(cluster: WorkerCluster) -> None:
    cluster.start_worker()
    jobs = [cluster.accept(dispatches=2) for _ in range(20)]
    wait_until(lambda: cluster.ledger.count_by_status()["succeeded"] == 20)
    wait_until(lambda: cluster.count_messages() == 0)
    assert all(cluster.read(job).attempts == 1 for job in jobs)
    assert cluster.count_diary_entries() == {"begin": 20, "end": 20}


def test_full_worker_prefetches_only_one_message(cluster: WorkerCluster) -> None:
    cluster.start_worker(concurrency=2)
    for _ in range(8):
        cluster.accept(steps=MANY_STEPS)
    wait_until(lambda: cluster.ledger.count_by_status()["running"] == 2)
    wait_until(lambda: cluster.count_messages() < 6)
    assert cluster.count_messages() == 5, "one message is received, and nothing is prefetched"


def test_spare_slot_of_a_full_worker_runs_another_tenants_job(cluster: WorkerCluster) -> None:
    cluster.start_worker(concurrency=2)
    for _ in range(4):
        cluster.accept(steps=MANY_STEPS)
    wait_until(lambda: cluster.ledger.count_by_status()["running"] == 2)
    job = cluster.accept(tenant="another")
    wait_until(lambda: cluster.read(job).status == "succeeded")
    assert cluster.ledger.count_by_status()["running"] == 2, "the spare slot is for tenants that have none"


def test_full_worker_starts_the_next_job_at_once(cluster: WorkerCluster) -> None:
    cluster.start_worker(concurrency=2)
    jobs = [cluster.accept(steps=5) for _ in range(20)]
    wait_until(lambda: cluster.ledger.count_by_status()["succeeded"] == len(jobs))
    ran = [cluster.read(job) for job in jobs]
    begun, ended = sorted(job.started_at for job in ran), sorted(job.finished_at for job in ran)
    idle = [(later - earlier).total_seconds() for earlier, later in zip(ended, begun[2:], strict=False)]
    assert median(idle) < 0.5, "a consumer that sleeps because the pool is full does so for 0.8 s"


def test_job_of_a_killed_worker_ends_on_another(cluster: WorkerCluster) -> None:
    doomed = cluster.start_worker(lease=2.0)
    job = cluster.accept(steps=50)
    wait_until(lambda: cluster.count_diary_entries()["begin"] == 1)
    doomed.kill()
    cluster.start_worker()
    wait_until(lambda: cluster.count_diary_entries()["begin"] == 2)
    wait_until(lambda: cluster.read(job).status in TERMINAL)
    assert (cluster.read(job).status, cluster.read(job).attempts) == ("succeeded", 2)
    assert cluster.count_diary_entries() == {"begin": 2, "end": 1}


def test_leases_are_renewed_while_a_job_holds_the_interpreter(cluster: WorkerCluster) -> None:
    cluster.start_worker(lease=5.0)
    jobs = [cluster.accept(steps=5, then="seize"), cluster.accept(steps=5)]
    wait_until(lambda: all(cluster.read(job).status in TERMINAL for job in jobs))
    assert [(cluster.read(job).status, cluster.read(job).attempts) for job in jobs] == [("succeeded", 1)] * 2


def test_running_and_queued_jobs_survive_a_kill_of_the_broker(cluster: WorkerCluster) -> None:
    cluster.start_worker()
    jobs = [cluster.accept(steps=40) for _ in range(12)]
    wait_until(lambda: cluster.count_diary_entries()["begin"] >= 8)
    cluster.restart_valkey()
    wait_until(lambda: cluster.ledger.count_by_status()["succeeded"] == len(jobs))
    assert all(cluster.read(job).attempts == 1 for job in jobs)
    assert cluster.count_diary_entries() == {"begin": 12, "end": 12}


def test_next_job_starts_within_seconds_of_a_broker_restart(cluster: WorkerCluster) -> None:
    cluster.start_worker()
    cluster.restart_valkey()
    job = cluster.accept()
    wait_until(lambda: cluster.read(job).status == "succeeded", seconds=20)


def test_lost_dispatch_is_repeated(cluster: WorkerCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("touchstone.ledger.ledger.REDISPATCH_SECONDS", 0.5)
    cluster.start_worker()
    job = cluster.accept(dispatches=0)
    wait_until(lambda: cluster.read(job).status == "succeeded")


def test_running_job_ends_soon_after_a_cancel(cluster: WorkerCluster) -> None:
    cluster.start_worker()
    job = cluster.accept(steps=MANY_STEPS)
    wait_until(lambda: cluster.count_diary_entries()["begin"] == 1)
    cluster.ledger.cancel(job)
    wait_until(lambda: cluster.read(job).status == "canceled", seconds=20)
    assert cluster.count_diary_entries() == {"begin": 1, "canceled": 1}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_worker_releases_its_job_and_exits_on_signal(cluster: WorkerCluster, signum: signal.Signals) -> None:
    leaving = cluster.start_worker()
    job = cluster.accept(steps=MANY_STEPS)
    wait_until(lambda: cluster.count_diary_entries()["begin"] == 1)
    assert stop_worker(leaving, signum) == 0
    assert (cluster.read(job).status, cluster.read(job).attempts) == ("queued", 0)
    assert cluster.ledger.workers.alive() == []
    cluster.start_worker()
    wait_until(lambda: cluster.read(job).status == "running")
    assert cluster.read(job).attempts == 1


def test_worker_stops_although_the_broker_is_gone(cluster: WorkerCluster) -> None:
    worker = cluster.start_worker()
    cluster.accept(steps=MANY_STEPS)
    wait_until(lambda: cluster.count_diary_entries()["begin"] == 1)
    cluster.valkeys[-1].stop()
    assert stop_worker(worker, signal.SIGTERM) == 0


def test_health_check_succeeds_only_with_a_worker_on_this_host(
    cluster: WorkerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_HOME", str(cluster.home))
    assert healthcheck.main() == 1
    cluster.ledger.workers.heartbeat("a worker elsewhere", {"host": "elsewhere", "pid": 0})
    assert healthcheck.main() == 1
    cluster.start_worker()
    assert healthcheck.main() == 0
    cluster.valkeys[-1].stop()
    assert healthcheck.main() == 1


def test_dispatch_without_a_broker_fails_quickly(cluster: WorkerCluster) -> None:
    cluster.valkeys[-1].stop()
    begun = time.monotonic()
    assert not cluster.dispatch("a-job")
    assert time.monotonic() - begun < 20


def test_worker_survives_a_broker_that_refuses_writes_for_a_while(cluster: WorkerCluster) -> None:
    worker = cluster.start_worker()
    with connect(cluster.url) as server:
        server.config_set("min-replicas-to-write", 1)
        wait_until(lambda: "Connection to broker lost" in cluster.log())
        server.config_set("min-replicas-to-write", 0)
    job = cluster.accept()
    wait_until(lambda: cluster.read(job).status == "succeeded")
    assert worker.is_alive()
