"""Jobs whose worker dies, in real processes: innocents end, and what kills its worker is found out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from api_tests.support.wait import wait_until
from api_tests.workers.test_workers import MANY_STEPS, WorkerCluster
from touchstone.ledger.records import TERMINAL, Submission


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, submission: Submission) -> Iterator[WorkerCluster]:
    cluster = WorkerCluster(tmp_path_factory.mktemp("q"), submission)
    yield cluster
    cluster.close()


def wait_for_claim(cluster: WorkerCluster, job: str, claim: int) -> int:
    """Wait until the job runs under this claim; returns the id of the process."""
    wait_until(lambda: (cluster.read(job).status, cluster.read(job).claims) == ("running", claim))
    worker = cluster.ledger.client.hget(f"ts:job:{job}", "worker")
    assert "-quarantine-" in str(worker)
    return wait_until(
        lambda: next((each.info["pid"] for each in cluster.ledger.workers.alive() if each.id == worker), 0)
    )


def test_innocents_of_a_worker_that_a_job_kills_end_and_the_killer_fails(cluster: WorkerCluster) -> None:
    cluster.start_worker(lease=1.0, max_attempts=1)
    innocents = [cluster.accept(steps=50) for _ in range(4)]
    wait_until(lambda: cluster.count_diary_entries()["begin"] == 4)
    killer = cluster.accept(then="kill")
    wait_until(lambda: not cluster.workers[0].is_alive())
    cluster.start_worker(lease=1.0, max_attempts=1)
    wait_until(lambda: all(cluster.read(job).status in TERMINAL for job in [killer, *innocents]))
    assert {cluster.read(job).status for job in innocents} == {"succeeded"}
    ended = cluster.read(killer)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "worker_lost")
    assert cluster.workers[1].is_alive(), "only its first death was that of a worker"
    assert 3 <= ended.attempts <= 4


def test_suspects_are_not_charged_when_their_worker_dies_with_them(cluster: WorkerCluster) -> None:
    cluster.start_worker(lease=1.0)
    job = cluster.accept(steps=MANY_STEPS)
    wait_until(lambda: cluster.read(job).status == "running")
    pid = 0
    for number, worker in enumerate((0, 1)):
        cluster.workers[worker].kill()
        cluster.start_worker(lease=1.0)
        pid = wait_for_claim(cluster, job, number + 2)
        assert (cluster.read(job).losses, cluster.read(job).strikes) == (3, 0)
    os.kill(pid, signal.SIGKILL)
    wait_for_claim(cluster, job, 4)
    assert cluster.read(job).strikes == 1
    cluster.ledger.cancel(job)
    wait_until(lambda: cluster.read(job).status == "canceled")
    assert "the process of suspects ended" in cluster.log()
