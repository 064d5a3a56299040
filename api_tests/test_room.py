"""Many large bodies at once: what does not fit is refused, and nothing is held for longer than needed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from serving import Api, png, problem, serving
from test_bad_http import HEAD

from service.limits import Room
from touchstone.settings import Settings

MIB = 2**20
LARGE = png() + bytes(MIB)
"""A small image in a large file."""


@pytest.fixture(scope="module")
def cramped(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service that holds three megabytes of bodies."""
    home = tmp_path_factory.mktemp("cramped")
    with serving(Settings(home=home, redis_url=valkey_server, bodies_memory=3 * MIB)) as api:
        yield api


@pytest.fixture
def room(cramped: Api) -> Room:
    """What the service holds."""
    app = cramped.server.config.app
    (room,) = [layer.kwargs["room"] for layer in app.user_middleware if "room" in layer.kwargs]  # type: ignore[union-attr]
    assert isinstance(room, Room)
    return room


def begin(api: Api, size: int) -> socket.socket:
    """Somebody who sends so much of a body, and then nothing."""
    line = socket.create_connection(("127.0.0.1", api.port), timeout=10)
    line.sendall(HEAD + b"Content-Length: 9999999\r\n\r\n" + bytes(size))
    return line


def until_held(room: Room, size: int) -> None:
    end = time.monotonic() + 5
    while room.held < size:
        assert time.monotonic() < end, room
        time.sleep(0.01)


def test_a_body_for_which_there_is_no_room(cramped: Api, room: Room) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(begin(cramped, 5 * MIB // 4))
        until_held(room, 5 * MIB // 2)
        response = cramped.submit(wait=None, image=LARGE)
        problem(response, 503, "overloaded")
        assert response.headers["retry-after"] == "1"
        assert cramped.submit(wait=None).status_code == 202
    end = time.monotonic() + 5
    while cramped.submit(wait=None, image=LARGE).status_code != 202:
        assert time.monotonic() < end
    assert room.held == 0


def test_who_waits_for_a_job_holds_no_body(cramped: Api, room: Room) -> None:
    answers: list[int] = []

    def wait() -> None:
        answers.append(cramped.submit(wait=2, image=LARGE).status_code)

    with cramped.worker.resting():
        threads = [threading.Thread(target=wait) for _ in range(6)]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        assert room.held == 0
        assert answers == []
    for thread in threads:
        thread.join()
    assert answers == [200] * 6


def test_files_that_go_to_the_disk_need_no_room(cramped: Api, room: Room) -> None:
    response = cramped.client.post("/v1/models", files={"file": bytes(5 * MIB), "manifest": b"{}"})
    assert response.status_code == 422
    assert room.held == 0
