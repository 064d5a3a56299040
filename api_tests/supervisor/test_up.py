"""`touchstone up` with real processes: started, stopped, killed, and started again on what is left."""

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
from touchstone.supervisor import processes
from touchstone.supervisor import valkey as embedded
from touchstone.supervisor.up import ANSWER_SECONDS, _find_free_port

PROGRAM = """
import sys
from touchstone.settings import Settings
from touchstone.supervisor import processes, up
processes.ASK_SECONDS, up.ANSWER_SECONDS = map(float, sys.argv[3:])
settings = Settings(home=sys.argv[1], port=int(sys.argv[2]))
worker = "api_tests.support.fake_worker"
sys.exit(up.serve(settings, lambda line: print(line, flush=True), worker_module=worker))
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class UpRunner:
    """A home, and every `touchstone up` that a test started on it."""

    def __init__(self, home: Path, submission: Submission) -> None:
        self.home = home
        self.settings = Settings(home=home)
        self.ledger = Ledger(address.ledger_url(self.settings), self.settings)
        self.submission = submission
        self.ups: list[subprocess.Popen[str]] = []
        self.checkup = (processes.HEALTH_CHECK_SECONDS, ANSWER_SECONDS)
        """How often the API is asked whether it lives, and how long it may take to answer."""

    def start(self, port: int = 0) -> subprocess.Popen[str]:
        path = os.pathsep.join(
            [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        environment = os.environ | {"PYTHONPATH": path}
        up = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.home), str(port), *map(str, self.checkup)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.ups.append(up)
        return up

    def ready(self, port: int = 0) -> tuple[subprocess.Popen[str], str]:
        """A service that is ready, and its address."""
        return self.read_until_ready(self.start(port))

    def read_until_ready(self, up: subprocess.Popen[str]) -> tuple[subprocess.Popen[str], str]:
        assert up.stdout is not None
        heard = []
        for line in up.stdout:
            heard.append(line)
            if line.startswith("Touchstone serves on "):
                return up, line.split()[3]
        raise AssertionError("".join(heard))

    def accept(self, **parameters: object) -> str:
        digest = open_blobs(self.settings).put(b"PNG")
        image = self.submission.image.model_copy(update={"digest": digest})
        changes = {"image": image, "parameters": {"steps": 1, **parameters}}
        return self.ledger.accept(self.submission.model_copy(update=changes))[0].id

    def worker_pid(self) -> int:
        return int(self.ledger.workers.alive()[-1].info["pid"])

    def api_pid(self) -> int:
        """The child of the last `up` that is not its worker, nor Valkey."""
        known = {self.worker_pid(), process_id(address.socket_url(self.home))}
        processes = Path(f"/proc/{self.ups[-1].pid}/task/{self.ups[-1].pid}/children").read_text().split()
        threads = Path(f"/proc/{self.ups[-1].pid}/task").glob("*/children")
        processes = [pid for thread in threads for pid in thread.read_text().split()]
        (api,) = {int(pid) for pid in processes} - known
        return api

    def close(self) -> None:
        for up in self.ups:
            if up.poll() is None:
                up.terminate()
            up.communicate()
        self.ledger.close()
        embedded.Valkey(self.home, None).stop()


@pytest.fixture
def house(tmp_path_factory: pytest.TempPathFactory, submission: Submission) -> Iterator[UpRunner]:
    house = UpRunner(tmp_path_factory.mktemp("u"), submission)
    yield house
    house.close()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def is_ready(url: str) -> bool:
    try:
        return bool(get(f"{url}/readyz")["status"] == "ready")
    except OSError:
        return False


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_up_serves_and_stops_in_order_and_requeues_the_running_job(
    house: UpRunner, signum: signal.Signals
) -> None:
    up, url = house.ready()
    assert get(f"{url}/readyz")["status"] == "ready"
    job = house.accept(steps=2)
    wait_until(lambda: house.ledger.read(job).status == "succeeded")
    left_over = house.accept(steps=3000)
    wait_until(lambda: house.ledger.read(left_over).status == "running")
    pids = [house.worker_pid(), house.api_pid(), process_id(address.socket_url(house.home))]
    up.send_signal(signum)
    begun = time.monotonic()
    assert up.wait(TIMEOUT_SECONDS) == 0
    assert time.monotonic() - begun < 40
    assert not any(is_running(pid) for pid in pids if pid)
    up, _ = house.ready()
    assert house.ledger.read(job).status == "succeeded"
    wait_until(lambda: house.ledger.read(left_over).status == "running")
    assert house.ledger.read(left_over).attempts == 1, "stopping in order costs no attempt"


def test_up_starts_again_after_a_kill_and_adopts_the_living_valkey(house: UpRunner) -> None:
    up, url = house.ready()
    job = house.accept(steps=3000)
    wait_until(lambda: house.ledger.read(job).status == "running")
    worker, api = house.worker_pid(), house.api_pid()
    valkey = process_id(address.socket_url(house.home))
    up.kill()
    up.wait()
    port = int(url.rpartition(":")[2])
    house.ready(port)
    assert not is_running(api)
    wait_until(lambda: not is_running(worker))
    assert process_id(address.socket_url(house.home)) == valkey, "the living Valkey is adopted"
    wait_until(lambda: house.ledger.read(job).status == "running")


@pytest.mark.parametrize("who", ["worker", "api", "valkey"])
def test_killed_child_process_is_restarted(house: UpRunner, who: str) -> None:
    _, url = house.ready()
    pid = {"worker": house.worker_pid, "api": house.api_pid}.get(
        who, lambda: process_id(address.socket_url(house.home))
    )()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))

    wait_until(lambda: is_ready(url) and house.worker_pid() != pid)
    job = house.accept()
    wait_until(lambda: house.ledger.read(job).status == "succeeded")


def test_killed_child_is_restarted_although_stdout_is_closed(house: UpRunner) -> None:
    up, url = house.ready()
    assert up.stdout
    up.stdout.close()
    up.stdout = None
    pid = house.worker_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: house.worker_pid() != pid)
    assert is_ready(url)


def test_supervisor_goes_on_after_a_check_raises() -> None:
    looks: list[str] = []

    class Broken:
        def ensure_running(self) -> None:
            looks.append("broken")
            raise RuntimeError("not foreseen")

        def stop(self) -> None:
            pass

    watcher = processes.Supervisor([Broken()], lambda _: None)
    wait_until(lambda: len(looks) > 1)
    watcher.stop()


def test_api_that_fails_its_health_check_is_restarted(house: UpRunner) -> None:
    house.checkup = (0.2, 1.0)
    started, url = house.ready()
    hung = house.api_pid()
    os.kill(hung, signal.SIGSTOP)
    assert started.stdout is not None
    assert "The API is there and does not answer; ending it\n" in started.stdout
    wait_until(lambda: not is_running(hung) and is_ready(url))


def test_up_command_serves_predictions_with_real_models(house: UpRunner) -> None:
    command = Path(sys.executable).with_name("touchstone")
    up = subprocess.Popen(
        [command, "up", "--home", house.home, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    house.ups.append(up)
    _, url = house.read_until_ready(up)
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


def test_second_up_on_one_home_exits_with_a_clear_error(house: UpRunner) -> None:
    house.ready()
    second = house.start()
    said, _ = second.communicate(timeout=TIMEOUT_SECONDS)
    assert second.returncode == 1
    assert "in use by another `touchstone up`" in said


def test_port_in_use_gives_a_clear_error(house: UpRunner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said, _ = house.start(port).communicate(timeout=TIMEOUT_SECONDS)
    assert f"port {port}" in said
    assert "choose another --port" in said
    assert process_id(address.socket_url(house.home)) is None, "nothing stays behind"


def test_start_waits_for_its_port_to_become_free(tmp_path: Path) -> None:
    """The API of a start that was killed may need a moment to end."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(home=tmp_path, port=taken.getsockname()[1])
        with pytest.raises(StartError):
            _find_free_port(settings, wait=False, is_wanted=lambda: True)
        threading.Timer(0.3, taken.close).start()
        assert _find_free_port(settings, wait=True, is_wanted=lambda: True) == settings.port


def test_signal_before_up_is_ready_stops_it(house: UpRunner) -> None:
    up = house.start()
    assert up.stdout is not None
    up.stdout.readline()
    wait_until(lambda: process_id(address.socket_url(house.home)))
    up.terminate()
    assert up.wait(TIMEOUT_SECONDS) == 0
    assert process_id(address.socket_url(house.home)) is None


def test_worker_that_cannot_start_is_reported_with_its_reason(
    house: UpRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_LOG_LEVEL", "nonsense")
    said, _ = house.start().communicate(timeout=100)
    assert house.ups[-1].returncode == 1
    assert "did not start" in said
    assert "Unknown level" in said
