"""Requests that wait for a job: of a revoked key they are told so, and if told nothing they read the job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from api_tests.service.test_api_keys import bearer, key_request
from api_tests.storage.test_storage_full import infer
from api_tests.support.fake_service import Api, assert_problem, run_service
from api_tests.support.wait import wait_until
from service.routers import events
from service.state import job_waiters
from service.state.job_waiters import JobWaiters, Waiter
from service.submissions.responses import is_over
from touchstone.errors import LedgerUnavailable, UnknownJob
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Job, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.settings import Settings

PAUSE = 0.02


@pytest.fixture
def guarded(settings: Settings) -> Iterator[Api]:
    with run_service(settings.model_copy(update={"require_keys": True})) as api:
        yield api


def poll(api: Api, headers: dict[str, str]) -> httpx2.Response:
    job = api.submit(wait=None, headers=headers).json()["id"]
    return api.client.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=20", **headers})


def await_submission(api: Api, headers: dict[str, str]) -> httpx2.Response:
    return api.submit(wait=20, headers=headers)


def await_inference(api: Api, headers: dict[str, str]) -> httpx2.Response:
    return infer(api, headers=headers)


@pytest.mark.parametrize("ask", [poll, await_submission, await_inference])
def test_waiting_request_is_401_soon_after_its_key_is_revoked(
    guarded: Api, ask: Callable[[Api, dict[str, str]], httpx2.Response]
) -> None:
    issued, stays = (guarded.ledger.keys.create(key_request()) for _ in range(2))
    with guarded.worker.pause(), ThreadPoolExecutor(2) as pool:
        answer = pool.submit(ask, guarded, bearer(issued.text))
        other = pool.submit(poll, guarded, bearer(stays.text))
        while guarded.ledger.count_by_status()["queued"] < 2:
            assert not answer.done()
            time.sleep(0.01)
        time.sleep(0.2)  # until they wait
        guarded.ledger.keys.revoke(issued.key.id)
        began = time.monotonic()
        assert_problem(answer.result(), 401, "key_invalid")
        assert time.monotonic() - began < 2.5
        assert not other.done(), "of another key"
        job = TenantLedger.of(guarded.ledger, LOCAL).find(status="queued").jobs
        guarded.ledger.cancel_all([one.id for one in job])
        assert other.result().status_code == 200
    canceled = {
        one.submission.kind for one in TenantLedger.of(guarded.ledger, LOCAL).find(status="canceled").jobs
    }
    assert canceled == ({"attack", "inference"} if ask is await_inference else {"attack"})


def test_waiter_does_not_read_its_job_while_the_ledger_is_unavailable(
    guarded: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question waits for its answer: for that of a second, the client would, too."""

    def gone(_: str) -> bool:
        raise LedgerUnavailable("gone")

    text, asked_again = guarded.ledger.keys.create(key_request()).text, []
    monkeypatch.setattr(guarded.ledger.keys, "is_valid", gone)
    monkeypatch.setattr(guarded.ledger, "read", asked_again.append)
    with guarded.worker.pause():
        assert guarded.submit(wait=2, headers=bearer(text)).status_code == 202
    assert asked_again == []


def test_stream_ends_when_its_key_check_fails(guarded: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> bool:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(events, "is_still_permitted", broken)
    headers = bearer(guarded.ledger.keys.create(key_request()).text)
    with guarded.client.stream("GET", "/v1/events", headers=headers) as response:
        assert response.status_code == 200
        wait_until(lambda: not guarded.server._backend.waiters.broadcaster._subscribers)


@pytest.fixture
def job(ledger: Ledger, submission: Submission) -> Job:
    return ledger.accept(submission)[0]


class Rounds:
    """Waits for one job, and counts how often it was read and the permission asked."""

    def __init__(self, ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(job_waiters, "RECHECK_SECONDS", PAUSE)
        monkeypatch.setattr(ledger, "read", self._read)
        self._waiters, self._job = JobWaiters(ledger), job
        self.reads = self.asked = 0

    def _read(self, _job: str) -> Job:
        self.reads += 1
        return self._job

    def may_wait(self) -> bool:
        self.asked += 1
        return True

    def wait(self, seconds: float, may_wait: Callable[[], bool] | None = None) -> Job:
        return asyncio.run(
            self._waiters.wait_until(Waiter(is_over), self._job, seconds=seconds, may_wait=may_wait)
        )


@pytest.fixture
def rounds(ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    return Rounds(ledger, job, monkeypatch)


def test_pauses_grow_up_to_eight_and_the_last_read_is_at_the_end(rounds: Rounds) -> None:
    rounds.wait((1 + 2 + 4 + 8 + 8 + 3) * PAUSE)
    assert 4 <= rounds.reads <= 6, "a slow machine may miss some, and none may come twice"


def test_read_at_the_end_finds_what_no_message_told(ledger: Ledger, rounds: Rounds, job: Job) -> None:
    rounds._job = job.model_copy(update={"status": "canceled"})
    waiters = rounds._waiters
    found = asyncio.run(waiters.wait_until(Waiter(is_over), job, seconds=PAUSE / 2, may_wait=None))
    assert (found.status, rounds.reads) == ("canceled", 1)


def test_permission_is_asked_for_at_every_pause(rounds: Rounds) -> None:
    rounds.wait(50 * PAUSE, rounds.may_wait)
    assert rounds.asked > rounds.reads
    assert rounds.reads <= 9


def test_who_may_no_longer_wait_gets_the_job_as_it_was(rounds: Rounds, job: Job) -> None:
    assert rounds.wait(1000, lambda: False) is job
    assert rounds.reads == 0


def test_waiter_woken_without_a_job_reads_it(
    rounds: Rounds, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(job: str) -> Job:
        raise UnknownJob.for_id(job)

    monkeypatch.setattr(rounds._waiters._ledger, "read", gone)
    monkeypatch.setattr(job_waiters, "RECHECK_SECONDS", 1000)
    waiter = Waiter(is_over)

    async def wait() -> Job:
        waiter.wake()
        return await rounds._waiters.wait_until(waiter, job, seconds=1000, may_wait=None)

    with pytest.raises(UnknownJob):
        asyncio.run(wait())
