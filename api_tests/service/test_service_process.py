"""`python -m service` as a process: it starts, logs JSON, and ends in order while clients wait."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import httpx2
import pytest

from api_tests.support.fake_service import data_url, png, sample_manifest
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Submission


class Process:
    """The service, and the lines that it logged."""

    def __init__(self, url: str, home: Path) -> None:
        environment = {
            **os.environ,
            **{"TOUCHSTONE_HOME": str(home), "TOUCHSTONE_REDIS_URL": url, "TOUCHSTONE_PORT": "0"},
        }
        self._child = subprocess.Popen(
            [sys.executable, "-m", "service"], env=environment, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[dict[str, object]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        address = wait_until(self._address)
        self.client = httpx2.Client(base_url=address, timeout=TIMEOUT_SECONDS)

    def _read(self) -> None:
        assert self._child.stderr
        self.lines += []
        for line in self._child.stderr:
            self.lines.append(json.loads(line))

    def _address(self) -> str:
        said = " ".join(str(line["event"]) for line in self.lines if "running on" in str(line["event"]))
        return next((word for word in said.split() if word.startswith("http")), "")

    def stop(self) -> None:
        """Stop it, unless it has stopped already."""
        self._child.send_signal(signal.SIGTERM)
        self._child.wait(TIMEOUT_SECONDS)
        self._reader.join()
        assert self._child.stderr
        self._child.stderr.close()
        self.client.close()


@pytest.fixture(scope="module")
def process(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One process for all tests of this module; the last that uses it stops it."""
    with connect(valkey_server) as client:
        client.flushall()
    process = Process(valkey_server, tmp_path_factory.mktemp("home"))
    try:
        yield process
    finally:
        process.stop()


def submit(process: Process, prefer: str) -> httpx2.Response:
    files, data = {"image": ("a.png", png())}, {"model": sample_manifest().id}
    return process.client.post("/v1/attacks/pgd", files=files, data=data, headers={"Prefer": prefer})


def open_request(process: Process, path: str, body: object = None) -> HTTPConnection:
    """A request that waits for up to a minute and whose response is not read yet."""
    url = process.client.base_url
    line = HTTPConnection(url.host, url.port, timeout=TIMEOUT_SECONDS)
    headers = {"Prefer": "wait=60", "Content-Type": "application/json"}
    line.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
    return line


def test_request_is_logged_with_its_id_route_and_status(process: Process) -> None:
    response = submit(process, "wait=0")
    request_id = response.headers["x-request-id"]
    [line] = wait_until(lambda: [line for line in process.lines if line.get("route") == "/v1/attacks/pgd"])
    assert line["request_id"] == request_id
    assert (line["method"], line["status"], line["event"]) == ("POST", 202, "request")
    assert isinstance(line["ms"], float)


def test_waiting_requests_are_answered_when_the_service_stops(process: Process) -> None:
    path = submit(process, "wait=0").json()["links"]
    before = len(process.client.get("/v1/jobs").json()["items"])
    image = {"image": data_url(png()), "model": sample_manifest().id}
    with ExitStack() as stack:
        submission, poll, stream = (
            stack.enter_context(closing(open_request(process, *what)))
            for what in (("/v1/attacks/pgd", image), (path["self"],), (path["events"],))
        )
        following = stream.getresponse()
        wait_until(lambda: len(process.client.get("/v1/jobs").json()["items"]) == before + 1)
        assert select.select([submission.sock, poll.sock], [], [], 0.2)[0] == []
        process.stop()
        assert [one.getresponse().status for one in (submission, poll)] == [202, 200]
        assert b"event: status" in following.read()


def test_service_refuses_to_start_on_a_ledger_with_jobs_without_tenant(
    valkey: str, ledger: Ledger, submission: Submission, tmp_path: Path
) -> None:
    job, _ = ledger.accept(submission)
    connect(valkey).hdel(f"ts:job:{job.id}", "tenant")  # as it was before there were tenants
    environment = {**os.environ, "TOUCHSTONE_HOME": str(tmp_path), "TOUCHSTONE_REDIS_URL": valkey}
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 1
    assert "start with another TOUCHSTONE_HOME" in done.stderr
