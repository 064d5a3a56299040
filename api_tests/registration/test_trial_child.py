"""Processes that wait for a model to try: what they do before, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_tests.support.own_models import build_manifest, linear_onnx
from api_tests.support.wait import is_alive, wait_until
from touchstone.errors import ModelUnusable
from touchstone.registration import trial_child, trial_process
from touchstone.registration.messages import TrialResult
from touchstone.registration.trial import Trial
from touchstone.registration.trial_child import TrialChild
from workers.spare_child import SpareChild

GIB = 2**30
WAITS = "import socket, sys\nsocket.socket(fileno=0).recv(1)\n"


@pytest.fixture
def spare() -> Iterator[SpareChild]:
    spare = SpareChild()
    yield spare
    spare.stop()


@pytest.fixture
def fake_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children that only wait until the other side ends."""
    (tmp_path / "waiting_child.py").write_text(WAITS)
    monkeypatch.setattr(trial_child, "_environment", lambda: {"PYTHONPATH": str(tmp_path)})
    monkeypatch.setattr(trial_child, "MODULE", "waiting_child")


def run_trial(spare: SpareChild) -> TrialResult:
    data = linear_onnx()
    one = Trial(build_manifest(data), seconds=60, memory=2 * GIB)
    return one.run(lambda: data, lambda _: None, threading.Semaphore(), start=spare.take)


def pid_of(child: TrialChild) -> int:
    return child._process.pid


def test_spare_child_tries_one_model_and_is_not_used_again(spare: SpareChild) -> None:
    spare.prepare()
    first = spare._child
    assert first is not None
    wait_until(lambda: "libtorch" in Path(f"/proc/{pid_of(first)}/maps").read_text(), seconds=60)
    assert not first.ended, "it waits"
    assert run_trial(spare).probe.gradient_agrees
    assert first.returncode is not None
    assert spare._child is None


@pytest.mark.usefixtures("fake_module")
def test_spare_child_is_kept_for_a_while_only_and_there_is_only_one(spare: SpareChild) -> None:
    spare.prepare()
    first = spare._child
    spare.prepare()
    assert spare._child is first
    spare.stop()
    assert first is not None
    assert first.returncode == -signal.SIGKILL
    short = SpareChild(keep_seconds=0.1)
    short.prepare()
    wait_until(lambda: short._child is None)


@pytest.mark.usefixtures("fake_module")
def test_spare_child_that_has_ended_is_replaced(spare: SpareChild) -> None:
    spare.prepare()
    first = spare._child
    assert first is not None
    os.kill(pid_of(first), signal.SIGKILL)
    wait_until(lambda: first.ended)
    second = spare.take()
    assert second is not first
    assert not second.ended
    second.close()


@pytest.mark.usefixtures("fake_module")
def test_child_that_ends_before_it_is_sent_its_model_makes_the_trial_fail_without_blame() -> None:
    child = TrialChild()
    os.kill(pid_of(child), signal.SIGKILL)
    data = linear_onnx()
    one = Trial(build_manifest(data), seconds=60, memory=2 * GIB)
    with pytest.raises(ModelUnusable, match="did not start"):
        one.run(lambda: data, lambda _: None, threading.Semaphore(), start=lambda: child)


DYING_PARENT = """
import os
from touchstone.registration.trial_child import TrialChild
child = TrialChild()
print(child._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_waiting_child_ends_when_the_process_that_started_it_is_killed() -> None:
    done = subprocess.run([sys.executable, "-c", DYING_PARENT], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    wait_until(lambda: not is_alive(pid), seconds=60)


CONFINED_PROGRAM = """
import re, resource, signal
from touchstone.registration import trial_process
from touchstone.registration.messages import TrialRequest

limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
trial_process._confine(TrialRequest.model_construct(seconds=50.0, memory=2**30))
for line in open("/proc/self/limits"):
    name, soft, hard = re.match(r"(.{26}) *([^ ]+) +([^ ]+)", line).groups()
    if soft == hard:
        print(name.strip(), soft, sep="=")
print("Alarm", signal.alarm(0), sep="=")
"""


def test_trial_process_has_hard_resource_limits() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONFINED_PROGRAM], capture_output=True, text=True, check=True
    )
    limits = dict(line.split("=") for line in done.stdout.splitlines())
    assert int(limits["Max address space"]) > GIB
    assert limits["Max open files"] == "32", "a lower limit that was set before stays"
    assert limits["Max file size"] == str(trial_process.MAX_WRITTEN_BYTES)
    assert limits["Max core file size"] == "0"
    assert 50 < int(limits["Max cpu time"]) <= 60 * (os.cpu_count() or 1)
    assert 50 < int(limits["Alarm"]) < 60, "it ends even if its parent dies"
