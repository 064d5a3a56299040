"""Streams and waits: bounded for each tenant and in all, so that short requests find a connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2
import pytest
from starlette.exceptions import HTTPException

from api_tests.service.test_api_keys import bearer, key_request
from api_tests.storage.test_storage_full import infer
from api_tests.support.fake_service import Api, assert_problem, run_service
from api_tests.support.wait import wait_until
from service.state.open_requests import OpenRequests
from touchstone.errors import Failure, TooManyStreams, TooManyWaits
from touchstone.settings import Settings


@pytest.fixture
def bounded(settings: Settings) -> Iterator[Api]:
    """A service where few connections are open, and each tenant may hold two streams and one wait."""
    few = {"require_keys": True, "connections": 16, "tenant_streams": 2, "tenant_waits": 1}
    with run_service(settings.model_copy(update=few)) as api:
        yield api


def key_of(api: Api, tenant: str) -> dict[str, str]:
    return bearer(api.ledger.keys.create(key_request(tenant=tenant)).text)


def open_stream(api: Api, stack: ExitStack, path: str, key: dict[str, str]) -> httpx2.Response:
    """A stream that stays open until the stack is closed; a refusal is read."""
    client = stack.enter_context(httpx2.Client(base_url=api.origin, timeout=30))
    response = stack.enter_context(client.stream("GET", path, headers=key))
    if response.status_code != 200:
        response.read()
    return response


def test_streams_of_a_tenant_are_bounded_and_no_other_tenants(bounded: Api) -> None:
    noisy, quiet = key_of(bounded, "noisy"), key_of(bounded, "quiet")
    with bounded.worker.pause(), ExitStack() as stack:
        job = bounded.submit(wait=None, headers=noisy).json()["links"]["events"]
        with ExitStack() as first:
            for path in ("/v1/events", job):
                assert open_stream(bounded, first, path, noisy).status_code == 200
            for path in ("/v1/events", job):
                body = assert_problem(open_stream(bounded, stack, path, noisy), 429, "too_many_streams")
                assert (body["limit"], body["retry_after"]) == (2, 1)
                assert "at most 2 event streams" in body["detail"]
            assert open_stream(bounded, stack, "/v1/events", quiet).status_code == 200
        wait_until(lambda: open_stream(bounded, stack, "/v1/events", noisy).status_code == 200)


def poll(api: Api, key: dict[str, str]) -> httpx2.Response:
    job = api.submit(wait=None, headers=key).json()["links"]["self"]
    return api.client.get(job, headers={"Prefer": "wait=30", **key})


def await_submission(api: Api, key: dict[str, str]) -> httpx2.Response:
    return api.submit(wait=30, headers=key)


def await_inference(api: Api, key: dict[str, str]) -> httpx2.Response:
    return infer(api, headers=key)


@pytest.mark.parametrize("ask", [poll, await_submission, await_inference])
def test_waits_of_a_tenant_are_bounded_and_no_other_tenants(
    bounded: Api, ask: Callable[[Api, dict[str, str]], httpx2.Response]
) -> None:
    noisy, quiet = key_of(bounded, "noisy"), key_of(bounded, "quiet")
    waits = bounded.server._backend.open_requests._waits
    with ThreadPoolExecutor(2) as pool:
        with bounded.worker.pause():
            first = pool.submit(poll, bounded, noisy)
            wait_until(lambda: waits["noisy"] == 1)
            queued = bounded.ledger.count_by_status()["queued"]
            body = assert_problem(ask(bounded, noisy), 429, "too_many_waits")
            assert body["limit"] == 1
            accepted = bounded.ledger.count_by_status()["queued"] - queued
            assert accepted == (1 if ask is poll else 0), "who is refused need not look for a job"
            other = pool.submit(ask, bounded, quiet)
            wait_until(lambda: waits["quiet"] == 1)
        assert first.result().status_code == other.result().status_code == 200
    assert ask(bounded, noisy).status_code == 200


def test_short_requests_find_a_connection_while_tenants_hold_all_the_streams_they_may(bounded: Api) -> None:
    keys = [key_of(bounded, f"noisy-{number}") for number in range(7)]
    healthy = key_of(bounded, "healthy")
    with ExitStack() as stack:
        found = [open_stream(bounded, stack, "/v1/events", key) for key in keys for _ in range(2)]
        assert [one.status_code for one in found] == [200] * 12 + [503] * 2
        assert found[-1].json()["code"] == "overloaded"
        assert bounded.client.get("/healthz").status_code == 200
        assert bounded.submit(wait=None, headers=healthy).status_code == 202


def test_tenant_without_keys_has_no_bound_of_its_own() -> None:
    requests = OpenRequests(Settings(tenant_streams=1, tenant_waits=1, connections=8))
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(requests.stream("local"))
            stack.enter_context(requests.wait("local"))
        with pytest.raises(HTTPException, match="6 streams and waits"):
            stack.enter_context(requests.wait("local"))


@pytest.mark.parametrize(
    ("hold", "refusal"), [(OpenRequests.stream, TooManyStreams), (OpenRequests.wait, TooManyWaits)]
)
def test_request_counts_until_it_ends_however_it_does(
    hold: Callable[..., ExitStack], refusal: type[Failure]
) -> None:
    requests = OpenRequests(Settings(tenant_streams=1, tenant_waits=1, require_keys=True))
    with hold(requests, "local"), pytest.raises(refusal), hold(requests, "local"):
        pass
    with pytest.raises(KeyError), hold(requests, "local"):
        raise KeyError
    with hold(requests, "local"):
        pass
    assert not requests._streams
    assert not requests._waits
