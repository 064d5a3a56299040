"""`touchstone up` with real processes: started, stopped, killed, and started again on the same home."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from touchstone.errors import StartError
from touchstone.ledger import address
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Submission
from touchstone.ledger.server import process_id
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.supervisor import processes, valkey as embedded_valkey
from touchstone.supervisor.apis import ANSWER_SECONDS
from touchstone.supervisor.up import _find_free_port

PROGRAM = """
import sys
from touchstone.settings import Settings
from touchstone.supervisor import apis, processes, up
processes.HEALTH_CHECK_SECONDS, apis.ANSWER_SECONDS = map(float, sys.argv[3:5])
settings = Settings(home=sys.argv[1], port=int(sys.argv[2]))
sys.exit(up.serve(settings, lambda line: print(line, flush=True), worker_module=sys.argv[5]))
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class UpRunner:
    """A home, and every `touchstone up` that tests started on it."""

    def __init__(self, home: Path, submission: Submission) -> None:
        self.home = home
        self.settings = Settings(home=home)
        self.ledger = Ledger(address.ledger_url(self.settings), self.settings)
        self.submission = submission
        self.ups: list[subprocess.Popen[str]] = []
        self.health_check = (processes.HEALTH_CHECK_SECONDS, ANSWER_SECONDS)
        """The interval of health checks of the API, and how long it may take to answer one."""
        self.worker = "api_tests.support.fake_worker"

    def start(self, port: int = 0) -> subprocess.Popen[str]:
        path = os.pathsep.join(
            [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        environment = os.environ | {"PYTHONPATH": path}
        up = subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                str(self.home),
                str(port),
                *map(str, self.health_check),
                self.worker,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.ups.append(up)
        return up

    def ready(self, port: int = 0) -> tuple[subprocess.Popen[str], str]:
        """Start a service; returns once it is ready, with its address."""
        return self.read_until_ready(self.start(port))

    def read_until_ready(self, up: subprocess.Popen[str]) -> tuple[subprocess.Popen[str], str]:
        assert up.stdout is not None
        lines = []
        for line in up.stdout:
            lines.append(line)
            if line.startswith("Touchstone serves on "):
                return up, line.split()[3]
        raise AssertionError("".join(lines))

    def accept(self, **parameters: object) -> str:
        digest = open_blobs(self.settings).put(b"PNG")
        image = self.submission.image.model_copy(update={"digest": digest})
        changes = {"image": image, "parameters": {"steps": 1, **parameters}}
        return self.ledger.accept(self.submission.model_copy(update=changes))[0].id

    def worker_pid(self) -> int:
        return int(self.ledger.workers.alive()[-1].info["pid"])

    def has_other_worker(self, pid: int) -> bool:
        """Whether a worker is alive that is not this one."""
        return any(worker.info["pid"] != pid for worker in self.ledger.workers.alive())

    def api_pid(self) -> int:
        """The process of the API, where there is one."""
        (api,) = self.api_pids()
        return api

    def api_pids(self) -> set[int]:
        """The children of the running `up` that are neither its worker nor Valkey."""
        known = {self.worker_pid(), process_id(address.socket_url(self.home))}
        [up] = [up for up in self.ups if up.poll() is None]
        threads = Path(f"/proc/{up.pid}/task").glob("*/children")
        children = [pid for thread in threads for pid in thread.read_text().split()]
        return {int(pid) for pid in children if is_running(int(pid))} - known

    def close(self) -> None:
        for up in self.ups:
            if up.poll() is None:
                up.terminate()
            up.communicate()
        self.ledger.close()
        embedded_valkey.Valkey(self.home, None).stop()


@pytest.fixture
def up_runner(tmp_path_factory: pytest.TempPathFactory, submission: Submission) -> Iterator[UpRunner]:
    up_runner = UpRunner(tmp_path_factory.mktemp("u"), submission)
    yield up_runner
    up_runner.close()


@pytest.fixture(scope="module")
def running_up(
    tmp_path_factory: pytest.TempPathFactory, submission: Submission
) -> Iterator[tuple[UpRunner, str]]:
    """One `touchstone up` for all tests that leave it running, and its address."""
    runner = UpRunner(tmp_path_factory.mktemp("r"), submission)
    _, url = runner.ready()
    yield runner, url
    runner.close()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def is_ready(url: str) -> bool:
    try:
        return bool(get(f"{url}/readyz")["status"] == "ready")
    except OSError:
        return False


def test_up_serves_and_stops_in_order_and_requeues_the_running_job(up_runner: UpRunner) -> None:
    """Stopped by SIGINT, started again on the same home, and stopped by SIGTERM."""
    _, url = up_runner.ready()
    assert get(f"{url}/readyz")["status"] == "ready"
    job = up_runner.accept(steps=2)
    wait_until(lambda: up_runner.ledger.read(job).status == "succeeded")
    left_over = up_runner.accept(steps=3000)
    for signum in (signal.SIGINT, signal.SIGTERM):
        wait_until(lambda: up_runner.ledger.read(left_over).status == "running")
        assert up_runner.ledger.read(left_over).attempts == 1, "stopping in order costs no attempt"
        stop_in_order(up_runner, signum)
        if signum is signal.SIGINT:
            up_runner.ready()
            assert up_runner.ledger.read(job).status == "succeeded"
    valkey = embedded_valkey.start(up_runner.home)
    assert (up_runner.ledger.read(left_over).status, up_runner.ledger.read(left_over).attempts) == (
        "queued",
        0,
    )
    valkey.stop()


def stop_in_order(up_runner: UpRunner, signum: signal.Signals) -> None:
    """Stop the last `up`: it exits with 0 in time, and none of its processes is left."""
    pids = [up_runner.worker_pid(), up_runner.api_pid(), process_id(address.socket_url(up_runner.home))]
    up = up_runner.ups[-1]
    up.send_signal(signum)
    begun = time.monotonic()
    assert up.wait(TIMEOUT_SECONDS) == 0
    assert time.monotonic() - begun < 40
    assert not any(is_running(pid) for pid in pids if pid)


def test_up_starts_again_after_a_kill_and_adopts_the_living_valkey(up_runner: UpRunner) -> None:
    up, url = up_runner.ready()
    job = up_runner.accept(steps=3000)
    wait_until(lambda: up_runner.ledger.read(job).status == "running")
    worker, api = up_runner.worker_pid(), up_runner.api_pid()
    valkey = process_id(address.socket_url(up_runner.home))
    up.kill()
    up.wait()
    port = int(url.rpartition(":")[2])
    up_runner.ready(port)
    assert not is_running(api)
    wait_until(lambda: not is_running(worker))
    assert process_id(address.socket_url(up_runner.home)) == valkey, "the living Valkey is adopted"
    wait_until(lambda: up_runner.ledger.read(job).status == "running")


@pytest.mark.parametrize("who", ["worker", "api", "valkey"])
def test_killed_child_process_is_restarted(running_up: tuple[UpRunner, str], who: str) -> None:
    up_runner, url = running_up
    pid = {"worker": up_runner.worker_pid, "api": up_runner.api_pid}.get(
        who, lambda: process_id(address.socket_url(up_runner.home))
    )()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))

    wait_until(lambda: is_ready(url) and up_runner.has_other_worker(pid))
    job = up_runner.accept()
    wait_until(lambda: up_runner.ledger.read(job).status == "succeeded")


def test_killed_child_is_restarted_although_stdout_is_closed(up_runner: UpRunner) -> None:
    up, url = up_runner.ready()
    assert up.stdout
    up.stdout.close()
    up.stdout = None
    pid = up_runner.worker_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: up_runner.has_other_worker(pid))
    assert is_ready(url)


def test_supervisor_goes_on_after_a_check_raises() -> None:
    checks: list[str] = []

    class Broken:
        def ensure_running(self) -> None:
            checks.append("broken")
            raise RuntimeError("unexpected")

        def stop(self) -> None:
            pass

    supervisor = processes.Supervisor([Broken()], lambda _: None)
    wait_until(lambda: len(checks) > 1)
    supervisor.stop()


def test_api_that_fails_its_health_check_is_restarted(up_runner: UpRunner) -> None:
    up_runner.health_check = (0.2, 1.0)
    up, url = up_runner.ready()
    hung = up_runner.api_pid()
    os.kill(hung, signal.SIGSTOP)
    assert up.stdout is not None
    assert "The API is there and does not answer; ending it\n" in up.stdout
    wait_until(lambda: not is_running(hung) and is_ready(url))


def test_up_command_serves_predictions_with_real_models(up_runner: UpRunner) -> None:
    command = Path(sys.executable).with_name("touchstone")
    up = subprocess.Popen(
        [command, "up", "--home", up_runner.home, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    up_runner.ups.append(up)
    _, url = up_runner.read_until_ready(up)
    photo = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(photo, "PNG")
    body = {
        "image": base64.b64encode(photo.getvalue()).decode(),
        "model": get(f"{url}/v1/models")["items"][0]["id"],
    }
    request = urllib.request.Request(
        f"{url}/v1/predictions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Prefer": "wait=30"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        assert json.load(answer)["status"] == "succeeded"


def test_second_up_on_one_home_exits_with_a_clear_error(running_up: tuple[UpRunner, str]) -> None:
    second = running_up[0].start()
    output, _ = second.communicate(timeout=TIMEOUT_SECONDS)
    assert second.returncode == 1
    assert "in use by another `touchstone up`" in output


def test_port_in_use_gives_a_clear_error(up_runner: UpRunner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output, _ = up_runner.start(port).communicate(timeout=TIMEOUT_SECONDS)
    assert f"port {port}" in output
    assert "choose another --port" in output
    assert process_id(address.socket_url(up_runner.home)) is None, "no Valkey is left"


def test_start_waits_for_its_port_to_become_free(tmp_path: Path) -> None:
    """The API of a start that was killed may need a moment to end."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(home=tmp_path, port=taken.getsockname()[1])
        with pytest.raises(StartError):
            _find_free_port(settings, wait=False, is_wanted=lambda: True)
        threading.Timer(0.3, taken.close).start()
        assert _find_free_port(settings, wait=True, is_wanted=lambda: True) == settings.port


def test_signal_before_up_is_ready_stops_it(up_runner: UpRunner) -> None:
    up = up_runner.start()
    assert up.stdout is not None
    up.stdout.readline()
    wait_until(lambda: process_id(address.socket_url(up_runner.home)))
    up.terminate()
    assert up.wait(TIMEOUT_SECONDS) == 0
    assert process_id(address.socket_url(up_runner.home)) is None


def test_worker_that_cannot_start_is_reported_with_its_reason(up_runner: UpRunner) -> None:
    up_runner.worker = "api_tests.no_such_module"
    output, _ = up_runner.start().communicate(timeout=100)
    assert up_runner.ups[-1].returncode == 1
    assert "the worker did not start" in output
    assert "No module named api_tests.no_such_module" in output
