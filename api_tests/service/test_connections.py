"""Connections that are held open without need: heads that trickle, answers that nobody reads, crowds."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from api_tests.support.fake_service import Api, serving
from api_tests.support.wait import SECONDS, wait_until
from service.http import connections
from service.http.read_deadline import Patience
from touchstone.settings import Settings


def lines(api: Api, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", api.port), timeout=SECONDS) for _ in range(count)]


def read_until(line: socket.socket, text: bytes, *, times: int = 1) -> bytes:
    """What comes until this has come so many times."""
    received = b""
    while received.count(text) < times:
        piece = line.recv(65536)
        assert piece, received
        received += piece
    return received


def test_heads_that_never_end_are_cut_off(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    opened = lines(api, 20)
    for line in opened:
        with suppress(ConnectionError):  # the first may have been cut off before the last is here
            line.sendall(b"GET / HTTP/1.1\r\nX: ")
    for line in opened:
        assert said(line) == b""
        line.close()


def test_a_second_head_is_not_waited_for_longer_than_the_first(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    (line,) = lines(api, 1)
    with line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(line, b"alive")
        line.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        assert line.recv(10) == b""


def test_an_answer_may_take_longer_than_a_head(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    with api.worker.resting():
        job = api.submit(wait=None).json()["links"]["self"]
        (line,) = lines(api, 1)
        with line:
            line.sendall(f"GET {job} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=2\r\n\r\n".encode())
            assert line.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_all_answered(api: Api) -> None:
    (line,) = lines(api, 1)
    with line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        assert read_until(line, b"alive", times=3).count(b"HTTP/1.1 200 OK") == 3


@contextmanager
def hardly_reading(api: Api, path: str) -> Iterator[socket.socket]:
    """Somebody who asks for something large, and has little room for it."""
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(SECONDS)
        line.connect(("127.0.0.1", api.port))
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield line


def held(api: Api) -> int:
    """The connections that the service holds."""
    return len(api.server.server_state.connections)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that waits for nobody."""
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(connections, "Patience", lambda: Patience(1.5, 10**5))


def large(api: Api) -> str:
    """The path of three megabytes."""
    path: str = api.job()["links"]["artifacts"]["adversarial.npy"]
    return path


@pytest.mark.usefixtures("hasty")
def test_answers_that_nobody_reads_are_cut_off(api: Api) -> None:
    path = large(api)
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(hardly_reading(api, path))
        wait_until(lambda: held(api) > 5)
        wait_until(lambda: held(api) <= 1)


@pytest.mark.usefixtures("hasty")
def test_a_slow_reader_who_keeps_the_pace_gets_everything(api: Api) -> None:
    path, began, size = large(api), time.monotonic(), 0
    with hardly_reading(api, path) as line:
        while size < 3_000_006:
            piece = line.recv(100_000)
            assert piece, size
            size += len(piece)
            time.sleep(len(piece) / 1_500_000)
    assert time.monotonic() - began > 1.5


@pytest.mark.usefixtures("hasty")
def test_a_reader_is_not_blamed_for_a_service_that_stood_still(api: Api) -> None:
    loop = api.server._backend.waiting.news._loop
    with hardly_reading(api, large(api)) as line:
        size = len(line.recv(1))
        loop.call_soon_threadsafe(time.sleep, 2)
        time.sleep(2.2)
        while size < 3_000_006:
            piece = line.recv(100_000)
            assert piece, size
            size += len(piece)


@pytest.mark.usefixtures("hasty")
def test_an_answer_that_takes_its_time_is_no_fault_of_the_reader(api: Api) -> None:
    with api.worker.resting():
        path = api.submit(wait=None).json()["links"]["self"]
        assert api.client.get(path, headers={"Prefer": "wait=1"}).status_code == 200


def test_the_patience_with_readers_is_less_than_fifteen_seconds() -> None:
    assert Patience().longest + connections.LOOK_SECONDS < 15


@contextmanager
def small(valkey: str, home: Path, **most: int) -> Iterator[Api]:
    """A service for few."""
    settings = Settings.model_validate({"home": home, "redis_url": valkey, **most})
    with serving(settings) as api:
        yield api


@pytest.mark.parametrize("setting", ["connections", "connections_each"])
def test_one_connection_too_many_is_turned_away(valkey: str, tmp_path: Path, setting: str) -> None:
    with small(valkey, tmp_path, **{setting: 3}) as api, ExitStack() as stack:
        opened = [stack.enter_context(line) for line in lines(api, 3)]
        wait_until(lambda: held(api) == 3)
        answer = httpx2.get(f"{api.origin}/healthz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "too_many_connections"
        opened[0].close()
        wait_until(lambda: held(api) == 2)
        assert httpx2.get(f"{api.origin}/healthz").status_code == 200


def test_a_flood_is_not_even_answered(valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", SECONDS)
    with small(valkey, tmp_path, connections=2) as api, ExitStack() as stack:
        opened = [stack.enter_context(line) for line in lines(api, 8)]
        answers = [said(line) for line in opened[2:]]
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 503"] * 2 + [b""] * 4


def said(line: socket.socket) -> bytes:
    """What comes first, if anything does."""
    try:
        return line.recv(1000)
    except ConnectionResetError:
        return b""


def test_who_is_turned_away_is_not_kept(valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.3)
    with small(valkey, tmp_path, connections=2) as api, ExitStack() as stack:
        opened = [stack.enter_context(line) for line in lines(api, 3)]
        assert said(opened[2])[:12] == b"HTTP/1.1 503"
        wait_until(lambda: held(api) == 2)


def test_requests_count_whose_connections_are_gone(valkey: str, tmp_path: Path) -> None:
    with small(valkey, tmp_path, connections=2) as api, api.worker.resting():
        job = api.submit(wait=None).json()["links"]["self"]
        asked = f"GET {job} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n".encode()
        api.client.close()
        tasks = api.server.server_state.tasks
        for count in range(1, 4):
            with socket.create_connection(("127.0.0.1", api.port)) as line:
                line.sendall(asked)
                wait_until(lambda count=count: len(tasks) == count)  # type: ignore[misc]
        wait_until(lambda: held(api) == 0)
        assert httpx2.get(f"{api.origin}/healthz").status_code == 503


def test_little_is_taken_for_who_does_not_read(api: Api) -> None:
    assert api.client.get("/healthz").status_code == 200
    for connection in tuple(api.server.server_state.connections):
        transport = connection.transport  # type: ignore[union-attr]
        unsent = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert (unsent, transport.get_write_buffer_limits()) == (128 * 2**10, (0, 0))


def test_an_idle_connection_is_closed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 10 * SECONDS)
    monkeypatch.setattr(api.server.config, "timeout_keep_alive", 0.2)
    (line,) = lines(api, 1)
    with line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(line, b"alive")
        assert line.recv(10) == b""


def test_slow_clients_keep_nobody_waiting(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty who send a head a byte at a time; `benchmarks.slow_clients` measures 200, and bodies too."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 10 * SECONDS)
    with ExitStack() as stack:
        opened = [stack.enter_context(line) for line in lines(api, 50)]
        for byte in b"GET /healthz HTTP/1.1\r\n":
            for line in opened:
                line.sendall(bytes([byte]))
            assert api.client.get("/healthz").status_code == 200
        assert held(api) > 50
    wait_until(lambda: held(api) <= 1)
