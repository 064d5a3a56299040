"""Workers that serve some models only: jobs on those go to them, and to no other worker while they live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
import torch

from api_tests.ledger.test_dispatches import age_dispatches
from api_tests.support.wait import wait_until
from api_tests.workers.test_workers import WorkerCluster
from touchstone.engine import Engine
from touchstone.ledger import broker
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import ModelRef, Submission
from touchstone.settings import Settings
from workers.__main__ import warm_up

OTHER = ModelRef(id="letters", digest="sha256:" + "2" * 64)


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, submission: Submission) -> Iterator[WorkerCluster]:
    cluster = WorkerCluster(tmp_path_factory.mktemp("w"), submission)
    yield cluster
    cluster.close()


def accept_other(cluster: WorkerCluster) -> str:
    """Accept a job on the model that no worker serves alone."""
    ours, cluster.submission = cluster.submission, cluster.submission.model_copy(update={"model": OTHER})
    job = cluster.accept()
    cluster.submission = ours
    return job


def test_job_is_dispatched_to_the_queue_of_the_workers_that_serve_its_model(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    def count_messages() -> list[int]:
        return [server.llen(queue) for queue in (broker.QUEUE, broker.queue_name("digits"))]  # type: ignore[misc]

    job, _ = ledger.accept(submission)
    ledger.dispatch(job.id)
    assert count_messages() == [1, 0]
    ledger.workers.heartbeat("special", {}, ["digits", "letters"])
    ledger.dispatch(ledger.accept(submission)[0].id)
    assert count_messages() == [1, 1]
    age_dispatches(server)
    server.delete(broker.QUEUE)
    ledger.reap()
    ledger.dispatch(job.id)
    assert count_messages() == [0, 2], "a repeated dispatch goes there"
    ledger.dispatch("no such job", job.id)
    assert count_messages() == [1, 3]


def test_messages_in_unserved_queues_do_not_hide_a_missing_dispatch(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    ledger.workers.heartbeat("special", {}, ["digits"])
    server.lpush(broker.QUEUE, *["message"] * 5)  # of canceled jobs for which there was no worker
    job, _ = ledger.accept(submission)
    age_dispatches(server)
    assert ledger.reap().to_dispatch == (job.id,)


def test_missing_dispatch_is_found_behind_many_present_ones(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    ledger.workers.heartbeat("special", {}, ["digits"])
    many = 1100
    for _ in range(many):
        ledger.accept(submission.model_copy(update={"model": OTHER}))
    server.lpush(broker.QUEUE, *["message"] * many)
    job, _ = ledger.accept(submission)
    age_dispatches(server)
    assert [ledger.reap().to_dispatch for _ in range(2)] == [(), (job.id,)]


def test_worker_that_serves_one_model_gets_only_its_jobs(cluster: WorkerCluster) -> None:
    cluster.start_worker(models="digits")
    own, other = cluster.accept(), accept_other(cluster)
    wait_until(lambda: cluster.read(own).status == "succeeded")
    assert cluster.read(other).status == "queued"
    cluster.start_worker()
    wait_until(lambda: cluster.read(other).status == "succeeded")


def test_jobs_go_to_other_workers_when_the_last_one_serving_a_model_is_gone(cluster: WorkerCluster) -> None:
    special = cluster.start_worker(models="digits")
    cluster.start_worker(lease=2.0)  # without a heartbeat for three of these, it counts as gone
    special.kill()
    special.join()
    job = cluster.accept()
    wait_until(lambda: cluster.read(job).status == "succeeded")


def test_worker_reports_the_models_it_serves(cluster: WorkerCluster) -> None:
    cluster.start_worker(models=" digits, letters ")
    served: list[Any] = [worker.info["serves"] for worker in cluster.ledger.workers.alive()]
    assert served == [["digits", "letters"]]


def test_worker_loads_its_served_models_at_startup() -> None:
    torch.set_num_threads(1)
    engine = Engine("cpu")
    try:
        served = Settings(models="nothing-of-the-kind,fashion-mnist-cnn").served_models
        warm_up(engine, served)
        assert [one["id"] for one in engine.metrics()["resident_models"]] == ["fashion-mnist-cnn"]
    finally:
        engine.stop()
