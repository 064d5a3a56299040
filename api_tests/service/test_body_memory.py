"""Many large bodies at once: what does not fit is refused, and nothing is held for longer than needed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from api_tests.service.test_bad_http import HEAD
from api_tests.support.fake_service import Api, assert_problem, png, run_service
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from service.http.body_limits import BodyMemory
from touchstone.settings import Settings

MIB = 2**20
LARGE = png() + bytes(MIB)
"""A small image in a large file."""


@pytest.fixture(scope="module")
def small_memory_api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service that holds three megabytes of bodies."""
    home = tmp_path_factory.mktemp("small")
    with run_service(Settings(home=home, redis_url=valkey_server, bodies_memory=3 * MIB)) as api:
        yield api


@pytest.fixture
def body_memory(small_memory_api: Api) -> BodyMemory:
    """What the service holds."""
    app = small_memory_api.server.config.app
    (body_memory,) = [layer.kwargs["memory"] for layer in app.user_middleware if "memory" in layer.kwargs]  # type: ignore[union-attr]
    assert isinstance(body_memory, BodyMemory)
    return body_memory


def send_partial_body(api: Api, size: int) -> socket.socket:
    """Somebody who sends so much of a body, and then nothing."""
    line = socket.create_connection(("127.0.0.1", api.port), timeout=TIMEOUT_SECONDS)
    line.sendall(HEAD + b"Content-Length: 9999999\r\n\r\n" + bytes(size))
    return line


def test_body_is_503_while_body_memory_is_full(small_memory_api: Api, body_memory: BodyMemory) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(send_partial_body(small_memory_api, 5 * MIB // 4))
        wait_until(lambda: body_memory.used >= 5 * MIB // 2)
        response = small_memory_api.submit(wait=None, image=LARGE)
        assert_problem(response, 503, "overloaded")
        assert response.headers["retry-after"] == "1"
        assert response.headers["connection"] == "close"
        assert small_memory_api.submit(wait=None).status_code == 202
    wait_until(lambda: small_memory_api.submit(wait=None, image=LARGE).status_code == 202)
    assert body_memory.used == 0


def test_request_waiting_for_its_job_holds_no_body_memory(
    small_memory_api: Api, body_memory: BodyMemory
) -> None:
    queued = partial(small_memory_api.client.get, "/v1/jobs", params={"status": "queued"})

    def wait(_: int) -> int:
        return small_memory_api.submit(wait=20, image=LARGE).status_code

    with ThreadPoolExecutor(6) as pool:
        with small_memory_api.worker.pause():
            before = len(queued().json()["items"])
            answers = pool.map(wait, range(2))
            wait_until(lambda: len(queued().json()["items"]) == before + 2)
            more = pool.map(wait, range(2))
            wait_until(lambda: len(queued().json()["items"]) == before + 4)
            assert body_memory.used == 0
        assert [*answers, *more] == [200] * 4


def test_file_upload_to_disk_holds_no_body_memory(small_memory_api: Api, body_memory: BodyMemory) -> None:
    response = small_memory_api.client.post("/v1/models", files={"file": bytes(5 * MIB), "manifest": b"{}"})
    assert response.status_code == 422
    assert body_memory.used == 0
