"""`python -m service` as a process: it starts, logs JSON, and ends in order while clients wait."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from serving import png, some_model

from touchstone.jobs.ledger import Ledger
from touchstone.jobs.record import Submission
from touchstone.jobs.scripts import connect


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
        self.client = httpx2.Client(base_url=self._address(), timeout=30)

    def _read(self) -> None:
        assert self._child.stderr
        self.lines += []
        for line in self._child.stderr:
            self.lines.append(json.loads(line))

    def _address(self) -> str:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for line in self.lines:
                if "running on" in str(line["event"]):
                    return next(word for word in str(line["event"]).split() if word.startswith("http"))
            time.sleep(0.02)
        raise AssertionError(self.lines)

    def stop(self) -> float:
        """Tell it to end; the seconds that it took."""
        began = time.monotonic()
        self._child.send_signal(signal.SIGTERM)
        self._child.wait(20)
        self._reader.join()
        assert self._child.stderr
        self._child.stderr.close()
        self.client.close()
        return time.monotonic() - began


@pytest.fixture
def process(valkey: str, tmp_path: Path) -> Iterator[Process]:
    process = Process(valkey, tmp_path)
    try:
        yield process
    finally:
        process.stop()


def submit(process: Process, prefer: str) -> httpx2.Response:
    files, data = {"image": ("a.png", png())}, {"model": some_model().id}
    return process.client.post("/v1/attacks/pgd", files=files, data=data, headers={"Prefer": prefer})


def test_those_who_wait_are_let_go_when_it_ends(process: Process) -> None:
    path = submit(process, "wait=0").json()["links"]
    answers: dict[str, int] = {}

    def wait() -> None:
        answers["submission"] = submit(process, "wait=60").status_code

    def poll() -> None:
        answers["poll"] = process.client.get(path["self"], headers={"Prefer": "wait=60"}).status_code

    def follow() -> None:
        answers["stream"] = process.client.get(path["events"]).status_code

    threads = [threading.Thread(target=target) for target in (wait, poll, follow)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert answers == {}
    assert process.stop() < 5
    for thread in threads:
        thread.join()
    assert answers == {"submission": 202, "poll": 200, "stream": 200}


def test_a_request_is_a_line_of_the_log(process: Process) -> None:
    response = submit(process, "wait=0")
    process.stop()
    (line,) = [line for line in process.lines if line.get("route") == "/v1/attacks/pgd"]
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["method"], line["status"], line["event"]) == ("POST", 202, "request")
    assert isinstance(line["ms"], float)


def test_it_does_not_start_on_what_it_would_take_for_nobodys(
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
        timeout=60,
    )
    assert done.returncode == 1
    assert "start with another TOUCHSTONE_HOME" in done.stderr
