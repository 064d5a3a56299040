"""Requests that wait for a job: whose key is revoked meanwhile is told so, and nobody else."""

from __future__ import annotations

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
from touchstone.errors import LedgerUnavailable
from touchstone.ledger.records import LOCAL
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.settings import Settings


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
