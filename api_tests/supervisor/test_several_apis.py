"""`touchstone up --api 2`: two API processes on one address, of which either may die or hang."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from api_tests.supervisor.test_up import UpRunner, get
from api_tests.support.wait import wait_until
from service.http.server import open_listeners
from touchstone.cli.app import app
from touchstone.ledger.records import Submission
from touchstone.settings import Settings
from touchstone.supervisor import up
from touchstone.supervisor.apis import plan_apis

CONNECTIONS = 40
"""So many connections reach both processes, but once in 2^39 times."""


class SeveralApis(UpRunner):
    """A home with two API processes."""

    def __init__(self, home: Path, submission: Submission) -> None:
        super().__init__(home, submission)
        self.health_check = (0.2, 1.0)
        self.url = ""

    def begin(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TOUCHSTONE_API_PROCESSES", "2")
            _, self.url = self.ready()

    def request(self, path: str, headers: dict[str, str] | None = None) -> bytes:
        """The answer on a connection of its own."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            connection.request("GET", path, headers=headers or {})
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read()
        finally:
            connection.close()

    def count_logged(self) -> list[int]:
        """How many requests each process has logged."""
        return [self.log(number).count('"event": "request"') for number in (1, 2)]

    def log(self, number: int) -> str:
        return (self.home / "logs" / f"api-{number}.log").read_text()


@pytest.fixture(scope="module")
def apis(tmp_path_factory: pytest.TempPathFactory, submission: Submission) -> Iterator[SeveralApis]:
    runner = SeveralApis(tmp_path_factory.mktemp("s"), submission)
    try:
        runner.begin()
        yield runner
    finally:
        runner.close()


def test_both_serve_on_one_address_and_their_metrics_add_up(apis: SeveralApis) -> None:
    def count() -> float:
        text = apis.request("/metrics").decode()
        found = re.search(r'http_request_seconds_count\{[^}]*route="/v1/certificates"[^}]*\} (\S+)', text)
        return float(found.group(1)) if found else 0

    before, logged = count(), apis.count_logged()
    for _ in range(CONNECTIONS):
        apis.request("/v1/certificates")
    assert {count() - before for _ in range(10)} == {CONNECTIONS}, "whichever process is asked"
    assert all(now > then for now, then in zip(apis.count_logged(), logged, strict=True))


def test_waits_and_streams_hear_of_jobs_on_either(apis: SeveralApis) -> None:
    job = apis.accept(steps=100)

    def wait(_: int) -> str:
        return str(json.loads(apis.request(f"/v1/jobs/{job}", {"Prefer": "wait=50"}))["status"])

    def follow(_: int) -> str:
        return apis.request(f"/v1/jobs/{job}/events").decode().rpartition("event: ")[2].split()[0]

    with ThreadPoolExecutor(20) as pool:
        waits, streams = pool.map(wait, range(10)), pool.map(follow, range(10))
        assert (set(waits), set(streams)) == ({"succeeded"}, {"completed"})


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_dies_or_hangs_is_restarted_and_the_other_stays(apis: SeveralApis, signum: int) -> None:
    wait_until(lambda: len(apis.api_pids()) == 2)
    lost, other = sorted(apis.api_pids())
    os.kill(lost, signum)
    # Until all of its threads have ended, and its socket is closed: before that, connections may be reset.
    wait_until(lambda: not Path(f"/proc/{lost}").exists())
    for _ in range(CONNECTIONS):
        assert get(f"{apis.url}/healthz")
    wait_until(lambda: len(apis.api_pids()) == 2)
    assert other in apis.api_pids()
    logged = apis.count_logged()

    def both_answer() -> bool:
        apis.request("/healthz")
        return all(now > then for now, then in zip(apis.count_logged(), logged, strict=True))

    wait_until(both_answer)


def test_flag_of_the_command_line_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(up, "serve", lambda settings, _: chosen.append(settings.api_processes) or 0)
    for flags in ([], ["--api", "3"]):
        assert CliRunner().invoke(app, ["up", "--home", str(tmp_path), *flags]).exit_code == 0
    assert chosen == [1, 3]


def test_limits_are_those_of_all_together_and_each_answers_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, connections=9, connections_each=1, api_processes=4)
    with ExitStack() as stack:
        plans = plan_apis(stack, settings)
        assert {(plan.settings.connections, plan.settings.connections_each) for plan in plans} == {(2, 1)}
        assert {plan.settings.refused_keys for plan in plans} == {settings.refused_keys // 4}
        assert len({plan.socket for plan in plans}) == len({plan.name for plan in plans}) == 4
        (metrics,) = {folder for plan in plans for _, folder in plan.variables}
        assert Path(metrics).is_dir()
    assert not Path(metrics).exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_listeners_share_a_port_and_close_without_the_others(tmp_path: Path, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = Settings(home=tmp_path, host=host, port=port)
    first, second = (open_listeners(settings, tmp_path / name) for name in ("first", "second"))
    assert (tmp_path / "first").stat().st_mode & 0o777 == 0o600
    for listener in first:
        listener.close()
    for _ in range(CONNECTIONS):
        second[-1].listen()
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    again = open_listeners(settings, tmp_path / "first")  # what a killed process left there is no obstacle
    for listener in (*second, *again):
        listener.close()
