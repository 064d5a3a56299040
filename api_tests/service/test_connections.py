"""Connections that are held open without need: heads that trickle, answers that nobody reads, crowds."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from api_tests.support.fake_service import Api, run_service
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from service.http import connections
from service.http.read_deadline import ReadDeadline
from touchstone.settings import Settings


def open_connections(api: Api, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", api.port), timeout=TIMEOUT_SECONDS) for _ in range(count)]


def read_until(line: socket.socket, text: bytes, *, times: int = 1) -> bytes:
    """What comes until this has come so many times."""
    received = b""
    while received.count(text) < times:
        piece = line.recv(65536)
        assert piece, received
        received += piece
    return received


def test_connections_with_unfinished_heads_are_closed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    opened = open_connections(api, 20)
    for line in opened:
        with suppress(ConnectionError):  # the first may have been cut off before the last is here
            line.sendall(b"GET / HTTP/1.1\r\nX: ")
    for line in opened:
        assert receive_first_bytes(line) == b""
        line.close()


def test_unfinished_second_head_is_closed_after_the_same_time(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    (line,) = open_connections(api, 1)
    with line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(line, b"alive")
        line.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        assert line.recv(10) == b""


def test_answer_may_take_longer_than_the_head_timeout(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    with api.worker.pause():
        job = api.submit(wait=None).json()["links"]["self"]
        (line,) = open_connections(api, 1)
        with line:
            line.sendall(f"GET {job} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=2\r\n\r\n".encode())
            assert line.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_all_answered(api: Api) -> None:
    (line,) = open_connections(api, 1)
    with line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        assert read_until(line, b"alive", times=3).count(b"HTTP/1.1 200 OK") == 3


@contextmanager
def open_slow_reader(api: Api, path: str) -> Iterator[socket.socket]:
    """Somebody who asks for something large, and has little room for it."""
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(TIMEOUT_SECONDS)
        line.connect(("127.0.0.1", api.port))
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield line


def count_connections(api: Api) -> int:
    """The connections that the service holds."""
    return len(api.server.server_state.connections)


@pytest.fixture
def short_read_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service with short read deadlines."""
    monkeypatch.setattr(connections, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(connections, "ReadDeadline", lambda: ReadDeadline(1.5, 10**5))


def large_artifact_path(api: Api) -> str:
    """The path of three megabytes."""
    path: str = api.run_job()["links"]["artifacts"]["adversarial.npy"]
    return path


@pytest.mark.usefixtures("short_read_deadline")
def test_connections_with_unread_answers_are_closed(api: Api) -> None:
    path = large_artifact_path(api)
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(open_slow_reader(api, path))
        wait_until(lambda: count_connections(api) > 5)
        wait_until(lambda: count_connections(api) <= 1)


@pytest.mark.usefixtures("short_read_deadline")
def test_slow_reader_above_the_minimum_rate_gets_the_whole_answer(api: Api) -> None:
    path, began, size = large_artifact_path(api), time.monotonic(), 0
    with open_slow_reader(api, path) as line:
        while size < 3_000_006:
            piece = line.recv(100_000)
            assert piece, size
            size += len(piece)
            time.sleep(len(piece) / 1_500_000)
    assert time.monotonic() - began > 1.5


@pytest.mark.usefixtures("short_read_deadline")
def test_reader_is_not_cut_off_because_the_event_loop_was_blocked(api: Api) -> None:
    loop = api.server._backend.waiters.broadcaster._loop
    with open_slow_reader(api, large_artifact_path(api)) as line:
        size = len(line.recv(1))
        loop.call_soon_threadsafe(time.sleep, 2)
        time.sleep(2.2)
        while size < 3_000_006:
            piece = line.recv(100_000)
            assert piece, size
            size += len(piece)


@pytest.mark.usefixtures("short_read_deadline")
def test_waiting_for_a_job_does_not_count_as_slow_reading(api: Api) -> None:
    with api.worker.pause():
        path = api.submit(wait=None).json()["links"]["self"]
        assert api.client.get(path, headers={"Prefer": "wait=1"}).status_code == 200


def test_read_deadline_is_less_than_fifteen_seconds() -> None:
    assert ReadDeadline().max_wait + connections.CHECK_SECONDS < 15


@contextmanager
def serve_with_limits(valkey: str, home: Path, **most: int) -> Iterator[Api]:
    """A service for few."""
    settings = Settings.model_validate({"home": home, "redis_url": valkey, **most})
    with run_service(settings) as api:
        yield api


@pytest.mark.parametrize("setting", ["connections", "connections_each"])
def test_connection_over_the_limit_is_503(valkey: str, tmp_path: Path, setting: str) -> None:
    with serve_with_limits(valkey, tmp_path, **{setting: 3}) as api, ExitStack() as stack:
        opened = [stack.enter_context(line) for line in open_connections(api, 3)]
        wait_until(lambda: count_connections(api) == 3)
        answer = httpx2.get(f"{api.origin}/v1/jobs")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "too_many_connections"
        opened[0].close()
        wait_until(lambda: count_connections(api) == 2)
        assert httpx2.get(f"{api.origin}/v1/jobs").status_code == 200


@pytest.mark.parametrize("setting", ["connections", "connections_each"])
def test_health_checks_are_answered_while_all_connections_are_taken(
    valkey: str, tmp_path: Path, setting: str
) -> None:
    with serve_with_limits(valkey, tmp_path, **{setting: 20}) as api, ExitStack() as stack:
        for line in open_connections(api, 20):
            stack.enter_context(line)
        wait_until(lambda: count_connections(api) == 20)
        assert httpx2.get(f"{api.origin}/healthz").json() == {"status": "alive"}
        assert httpx2.get(f"{api.origin}/readyz").json()["code"] == "not_ready"
        assert httpx2.get(f"{api.origin}/v2/health/live").json() == {"live": True}
        assert httpx2.get(f"{api.origin}/healthz2").json()["code"] == "too_many_connections"
        assert httpx2.post(f"{api.origin}/healthz").json()["code"] == "too_many_connections"
        [line] = open_connections(api, 1)
        stack.enter_context(line)
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/jobs HTTP/1.1\r\n\r\n")
        answer = read_until(line, b"alive")
        while piece := receive_first_bytes(line):
            answer += piece
        assert answer.count(b"HTTP/1.1 ") == 1, "nothing follows a health check there"


def test_connections_kept_for_health_checks_are_few_and_short(
    valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", TIMEOUT_SECONDS)
    with serve_with_limits(valkey, tmp_path, connections=20) as api, ExitStack() as stack:
        for line in open_connections(api, 20 + connections.HEALTH_CONNECTIONS_EACH):
            stack.enter_context(line)
        wait_until(lambda: count_connections(api) == 20 + connections.HEALTH_CONNECTIONS_EACH)
        assert httpx2.get(f"{api.origin}/healthz").status_code == 503
        monkeypatch.setattr(connections, "HEALTH_CONNECTIONS_EACH", 10)
        assert httpx2.get(f"{api.origin}/healthz").status_code == 200
        monkeypatch.setattr(connections, "HEALTH_CONNECTIONS", 4)
        assert httpx2.get(f"{api.origin}/healthz").status_code == 503


def test_connections_of_one_network_count_together(
    valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = {"127.0.0.1": "A", "127.0.0.2": "A", "127.0.0.3": "B"}
    monkeypatch.setattr(connections, "find_client_network", networks.__getitem__)
    with serve_with_limits(valkey, tmp_path, connections_each=3) as api, ExitStack() as stack:
        for line in open_connections(api, 3):
            stack.enter_context(line)
        wait_until(lambda: count_connections(api) == 3)
        for source, status in (("127.0.0.2", 503), ("127.0.0.3", 200)):
            with httpx2.Client(transport=httpx2.HTTPTransport(local_address=source)) as client:
                assert client.get(f"{api.origin}/v1/jobs").status_code == status


def test_connections_far_over_the_limit_are_closed_without_answer(
    valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", TIMEOUT_SECONDS)
    with serve_with_limits(valkey, tmp_path, connections=2) as api, ExitStack() as stack:
        opened = [stack.enter_context(line) for line in open_connections(api, 8)]
        wait_until(lambda: count_connections(api) == 4)
        for line in opened:
            with suppress(ConnectionError):
                line.sendall(b"GET / HTTP/1.1\r\n")
        answers = [receive_first_bytes(line) for line in opened[2:]]
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 503"] * 2 + [b""] * 4


def receive_first_bytes(line: socket.socket) -> bytes:
    """What comes first, if anything does."""
    try:
        return line.recv(1000)
    except ConnectionResetError:
        return b""


def test_refused_connection_is_closed_after_a_short_linger(
    valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.3)
    with serve_with_limits(valkey, tmp_path, connections=2) as api, ExitStack() as stack:
        opened = [stack.enter_context(line) for line in open_connections(api, 3)]
        opened[2].sendall(b"GET / HTTP/1.1\r\n")
        assert receive_first_bytes(opened[2])[:12] == b"HTTP/1.1 503"
        wait_until(lambda: count_connections(api) == 2)
        silent = stack.enter_context(socket.create_connection(("127.0.0.1", api.port), TIMEOUT_SECONDS))
        assert receive_first_bytes(silent) == b""


def test_running_requests_of_closed_connections_count_toward_the_limit(
    valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_with_limits(valkey, tmp_path, connections=2) as api, api.worker.pause():
        job = api.submit(wait=None).json()["links"]["self"]
        asked = f"GET {job} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n".encode()
        api.client.close()
        tasks = api.server.server_state.tasks
        monkeypatch.setattr(api.server._backend.open_requests, "_most", 3)
        for count in range(1, 4):
            with socket.create_connection(("127.0.0.1", api.port)) as line:
                line.sendall(asked)
                wait_until(lambda count=count: len(tasks) == count)  # type: ignore[misc]
        wait_until(lambda: count_connections(api) == 0)
        assert httpx2.get(f"{api.origin}/v1/jobs").status_code == 503


def test_slow_reader_is_buffered_only_up_to_the_limit(api: Api) -> None:
    assert api.client.get("/healthz").status_code == 200
    for connection in tuple(api.server.server_state.connections):
        transport = connection.transport  # type: ignore[union-attr]
        unsent = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert (unsent, transport.get_write_buffer_limits()) == (128 * 2**10, (0, 0))


def test_idle_keep_alive_connection_is_closed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 10 * TIMEOUT_SECONDS)
    monkeypatch.setattr(api.server.config, "timeout_keep_alive", 0.2)
    (line,) = open_connections(api, 1)
    with line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(line, b"alive")
        assert line.recv(10) == b""


def test_slow_clients_do_not_delay_other_requests(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty who send a head a byte at a time; `benchmarks.slow_clients` measures 200, and bodies too."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 10 * TIMEOUT_SECONDS)
    with ExitStack() as stack:
        opened = [stack.enter_context(line) for line in open_connections(api, 50)]
        for byte in b"GET /healthz HTTP/1.1\r\n":
            for line in opened:
                line.sendall(bytes([byte]))
            assert api.client.get("/healthz").status_code == 200
        assert count_connections(api) > 50
    wait_until(lambda: count_connections(api) <= 1)
