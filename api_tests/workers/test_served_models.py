"""Workers that serve some models only: their jobs come to them, and to nobody else while they live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
import torch

from api_tests.ledger.test_ledger import silence_bells
from api_tests.support.wait import wait_until
from api_tests.workers.test_workers import Yard
from touchstone.engine import Engine
from touchstone.ledger import broker
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import ModelRef, Submission
from touchstone.settings import Settings
from workers.__main__ import warm_up

OTHER = ModelRef(id="letters", digest="sha256:" + "2" * 64)


@pytest.fixture
def yard(tmp_path_factory: pytest.TempPathFactory, submission: Submission) -> Iterator[Yard]:
    yard = Yard(tmp_path_factory.mktemp("y"), submission)
    yield yard
    yard.close()


def accept_other(yard: Yard) -> str:
    """A job on the model that has no worker of its own."""
    ours, yard.submission = yard.submission, yard.submission.model_copy(update={"model": OTHER})
    job = yard.accept()
    yard.submission = ours
    return job


def test_a_bell_is_rung_where_the_model_is_served(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    job, _ = ledger.accept(submission)
    assert ledger.queue_of(job.id) == broker.QUEUE
    ledger.beat("special", {}, ["digits", "letters"])
    assert ledger.queue_of(ledger.accept(submission)[0].id) == broker.queue_of("digits")
    silence_bells(server)
    ledger.reap()
    assert ledger.queue_of(job.id) == broker.queue_of("digits"), "a bell that is rung again is rung there"
    assert ledger.queue_of("no such job") == broker.QUEUE


def test_bells_that_nobody_hears_make_up_for_none_that_is_missing(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    ledger.beat("special", {}, ["digits"])
    server.lpush(broker.QUEUE, *["message"] * 5)  # of jobs for which there was no worker, canceled since
    job, _ = ledger.accept(submission)
    silence_bells(server)
    assert ledger.reap().ring == (job.id,)


def test_a_bell_that_is_missing_is_found_behind_many_that_are_not(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    ledger.beat("special", {}, ["digits"])
    many = 1100
    for _ in range(many):
        ledger.accept(submission.model_copy(update={"model": OTHER}))
    server.lpush(broker.QUEUE, *["message"] * many)
    job, _ = ledger.accept(submission)
    silence_bells(server)
    assert [ledger.reap().ring for _ in range(2)] == [(), (job.id,)]


def test_a_worker_that_serves_one_model_gets_its_jobs_and_no_others(yard: Yard) -> None:
    yard.start_worker(models="digits")
    own, other = yard.accept(), accept_other(yard)
    wait_until(lambda: yard.read(own).status == "succeeded")
    assert yard.read(other).status == "queued"
    yard.start_worker()
    wait_until(lambda: yard.read(other).status == "succeeded")


def test_when_the_last_worker_of_a_model_is_gone_its_jobs_go_to_the_others(yard: Yard) -> None:
    special = yard.start_worker(models="digits")
    yard.start_worker(lease=2.0)  # three of these without a sign of life, and it counts as gone
    special.kill()
    special.join()
    job = yard.accept()
    wait_until(lambda: yard.read(job).status == "succeeded")


def test_a_worker_tells_what_it_serves(yard: Yard) -> None:
    yard.start_worker(models=" digits, letters ")
    told: list[Any] = [worker.info["serves"] for worker in yard.ledger.workers()]
    assert told == [["digits", "letters"]]


def test_a_worker_loads_what_it_serves_before_it_is_asked() -> None:
    torch.set_num_threads(1)
    engine = Engine("cpu")
    try:
        served = Settings(models="nothing-of-the-kind,fashion-mnist-cnn").served
        warm_up(engine, served)
        assert [one["id"] for one in engine.figures()["resident_models"]] == ["fashion-mnist-cnn"]
    finally:
        engine.stop()
