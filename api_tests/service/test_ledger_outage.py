"""The ledger stops answering, as a machine does that is cut off: the service says so, and is back with it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from api_tests.support.fake_service import Api, run_service
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from service import app
from service.state.dispatch import MAX_BATCH, Dispatcher
from service.state.job_waiters import JobWaiters
from touchstone.errors import LedgerUnavailable
from touchstone.ledger import quotas
from touchstone.ledger.connection import ANSWER_SECONDS
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Job
from touchstone.ledger.server import process_id
from touchstone.settings import Settings
from touchstone.supervisor import valkey


class FreezableValkey:
    """A Valkey that can be frozen."""

    def __init__(self, home: Path) -> None:
        self.server = valkey.start(home)
        pid = process_id(self.server.url)
        assert pid is not None
        self._pid = pid

    @contextmanager
    def frozen(self) -> Iterator[None]:
        os.kill(self._pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def freezable_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreezableValkey]:
    freezable_valkey = FreezableValkey(tmp_path_factory.mktemp("valkey"))
    yield freezable_valkey
    freezable_valkey.server.stop()


@pytest.fixture
def api(
    freezable_valkey: FreezableValkey, tmp_path: Path
) -> Iterator[Api]:  # instead of the one that all modules share
    with run_service(Settings(home=tmp_path, redis_url=freezable_valkey.server.url)) as api:
        yield api


def submit_and_read_code(api: Api) -> tuple[int, str]:
    response = api.submit(wait=None)
    return response.status_code, response.json().get("code", "")


def test_ledger_outage_is_503_and_does_not_delay_requests_without_ledger(
    api: Api, freezable_valkey: FreezableValkey
) -> None:
    api.run_job()
    meanwhile = 0
    with freezable_valkey.frozen(), ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(submit_and_read_code, api) for _ in range(16)]
        while not any(answer.done() for answer in answers):
            assert api.client.get("/healthz").status_code == 200
            meanwhile += 1
        assert {answer.result(20) for answer in answers} == {(503, "ledger_unavailable")}
        assert api.client.get("/readyz").json()["missing"] == ["ledger", "worker"]
    assert meanwhile > 1, "only who asks for the ledger waits until it counts as gone"
    assert api.run_job()["status"] == "succeeded"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/jobs", 503),
        ("/v1/models", 200),
        ("/v1/attacks", 200),
        ("/v1/attacks/pgd/cost", 200),
        ("/metrics", 200),
    ],
)
def test_request_waits_for_at_most_one_ledger_timeout(
    api: Api, freezable_valkey: FreezableValkey, path: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where what a tenant may use must be asked before anything else."""
    monkeypatch.setattr(quotas, "CACHE_SECONDS", 0)
    assert api.client.get(path).status_code == 200
    with freezable_valkey.frozen():
        began = time.monotonic()
        assert api.client.get(path).status_code == status
        assert time.monotonic() - began < 2 * ANSWER_SECONDS
    assert api.client.get(path).status_code == 200


def test_waiting_submission_returns_the_accepted_job_during_an_outage(
    api: Api, freezable_valkey: FreezableValkey
) -> None:
    with api.worker.pause(), ThreadPoolExecutor() as pool:
        waiting = pool.submit(api.submit, wait=3)
        while not api.worker.dispatched:  # before that, the service may not have heard what the ledger wrote
            time.sleep(0.01)
        with freezable_valkey.frozen():
            response = waiting.result()
    assert response.status_code == 202
    assert response.json()["status"] == "queued"


def test_waiters_are_woken_after_the_outage(api: Api, freezable_valkey: FreezableValkey) -> None:
    with api.worker.pause():
        path = api.submit(wait=None).json()["links"]
        woken: list[float] = []

        def follow() -> None:
            assert api.client.get(path["self"], headers={"Prefer": "wait=50"}).json()["status"] == "succeeded"
            woken.append(time.monotonic())

        thread = threading.Thread(target=follow)
        thread.start()
        time.sleep(0.3)  # until it waits
        with freezable_valkey.frozen():
            time.sleep(2)
        began = time.monotonic()
    thread.join()
    assert woken[0] - began < 20


def test_watch_raises_when_its_subscription_is_not_confirmed(
    freezable_valkey: FreezableValkey, tmp_path: Path
) -> None:
    ledger = Ledger(freezable_valkey.server.url, Settings(home=tmp_path))
    ledger.ping()  # opens the connection that the watch will use
    with freezable_valkey.frozen(), pytest.raises(LedgerUnavailable):
        ledger.watch().__enter__()
    with ledger.watch():
        pass
    ledger.close()


def test_waiting_requests_leave_the_threads_to_other_requests(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking: list[str] = []
    go_on = threading.Event()

    def slowly(_: JobWaiters, job: Job, *_others: object) -> Job:
        looking.append(job.id)
        go_on.wait(TIMEOUT_SECONDS)
        return job

    monkeypatch.setattr(app, "THREADS", 2)
    monkeypatch.setattr(JobWaiters, "_read", slowly)
    with run_service(settings) as api, ThreadPoolExecutor() as pool:
        with api.worker.pause():
            waiters = [pool.submit(api.submit, wait=50) for _ in range(3)]
            try:
                wait_until(lambda: len(looking) == len(waiters))
                assert api.client.get("/v1/jobs").status_code == 200
            finally:
                go_on.set()
        assert {waiter.result().json()["status"] for waiter in waiters} == {"succeeded"}


def test_dispatcher_goes_on_after_a_failed_dispatch() -> None:
    rung: list[str] = []

    def ring(*jobs: str) -> None:
        rung.extend(jobs)
        if "first" in jobs:
            raise RuntimeError("not foreseen")

    ringer = Dispatcher(ring)
    ringer.start()
    ringer.dispatch("first")
    wait_until(lambda: rung)
    ringer.dispatch("second")
    ringer.stop()
    assert rung == ["first", "second"]


def test_dispatcher_sends_in_one_step_what_came_meanwhile() -> None:
    steps: list[tuple[str, ...]] = []
    go_on = threading.Event()

    def ring(*jobs: str) -> None:
        steps.append(jobs)
        go_on.wait(TIMEOUT_SECONDS)

    ringer = Dispatcher(ring)
    ringer.start()
    ringer.dispatch("first")
    wait_until(lambda: steps)
    more = [str(number) for number in range(MAX_BATCH + 1)]
    for job in more:
        ringer.dispatch(job)
    go_on.set()
    ringer.stop()
    assert steps == [("first",), tuple(more[:-1]), (more[-1],)]
