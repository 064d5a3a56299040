"""Requests that wait for a job: whose key is revoked meanwhile is told so, and nobody else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from api_tests.service.test_api_keys import asked, bearer
from api_tests.storage.test_storage_full import infer
from api_tests.support.fake_service import Api, problem, serving
from api_tests.support.wait import wait_until
from service.routers import events
from touchstone.errors import LedgerUnavailable
from touchstone.ledger.records import LOCAL
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.settings import Settings


@pytest.fixture
def guarded(settings: Settings) -> Iterator[Api]:
    with serving(settings.model_copy(update={"require_keys": True})) as api:
        yield api


def poll(api: Api, headers: dict[str, str]) -> httpx2.Response:
    job = api.submit(wait=None, headers=headers).json()["id"]
    return api.client.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=20", **headers})


def await_submission(api: Api, headers: dict[str, str]) -> httpx2.Response:
    return api.submit(wait=20, headers=headers)


def await_inference(api: Api, headers: dict[str, str]) -> httpx2.Response:
    return infer(api, headers=headers)


@pytest.mark.parametrize("ask", [poll, await_submission, await_inference])
def test_who_waits_with_a_revoked_key_is_told_so_within_a_second_or_so(
    guarded: Api, ask: Callable[[Api, dict[str, str]], httpx2.Response]
) -> None:
    issued, stays = (guarded.ledger.keys.create(asked()) for _ in range(2))
    with guarded.worker.resting(), ThreadPoolExecutor(2) as pool:
        answer = pool.submit(ask, guarded, bearer(issued.text))
        other = pool.submit(poll, guarded, bearer(stays.text))
        while guarded.ledger.counts()["queued"] < 2:
            assert not answer.done()
            time.sleep(0.01)
        time.sleep(0.2)  # until they wait
        guarded.ledger.keys.revoke(issued.key.id)
        began = time.monotonic()
        problem(answer.result(), 401, "key_invalid")
        assert time.monotonic() - began < 2.5
        assert not other.done(), "of another key"
        job = Holdings.of(guarded.ledger, LOCAL).find(status="queued").jobs
        guarded.ledger.cancel_all([one.id for one in job])
        assert other.result().status_code == 200
    canceled = {
        one.submission.kind for one in Holdings.of(guarded.ledger, LOCAL).find(status="canceled").jobs
    }
    assert canceled == ({"attack", "inference"} if ask is await_inference else {"attack"})


def test_while_the_ledger_is_gone_a_waiter_asks_it_once_at_a_time(
    guarded: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question waits for its answer: for that of a second, the client would, too."""

    def gone(_: str) -> bool:
        raise LedgerUnavailable("gone")

    text, asked_again = guarded.ledger.keys.create(asked()).text, []
    monkeypatch.setattr(guarded.ledger.keys, "stands", gone)
    monkeypatch.setattr(guarded.ledger, "read", asked_again.append)
    with guarded.worker.resting():
        assert guarded.submit(wait=2, headers=bearer(text)).status_code == 202
    assert asked_again == []


def test_a_stream_whose_key_cannot_be_asked_after_ends(guarded: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> bool:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(events, "still_permitted", broken)
    headers = bearer(guarded.ledger.keys.create(asked()).text)
    with guarded.client.stream("GET", "/v1/events", headers=headers) as response:
        assert response.status_code == 200
        wait_until(lambda: not guarded.server._backend.waiting.news._readers)
