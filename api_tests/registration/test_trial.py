"""A model is tried in a process that may die of it: what is found out, and every way in which it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from api_tests.support.own_models import (
    card_of,
    greedy_onnx,
    linear_net,
    linear_onnx,
    linear_safetensors,
    slow_onnx,
    stub_timm,
)
from api_tests.support.wait import wait_until
from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.oracles.preprocessing import Sight
from touchstone.errors import Canceled, DeadlineExceeded, InvalidModel, ModelTooCostly, ModelUnusable
from touchstone.registration import trial, trial_process
from touchstone.registration.examination import GRADIENT_TOLERANCE, examine, gradient_error
from touchstone.registration.messages import STEPS, Findings
from touchstone.registration.trial import Trial

GIB = 2**30


def tried(data: bytes, *, seconds: float = 60, memory: int = 2 * GIB, **said: Any) -> Findings:
    one = Trial(card_of(data, **said), seconds=seconds, memory=memory)
    return one.run(lambda: data, lambda _: None, threading.Semaphore())


def found(data: bytes, **said: Any) -> Findings:
    """The same in this process, for what the process does not matter to."""
    return examine(card_of(data, **said), data, lambda _: None)


def test_a_good_model_is_tried_from_end_to_end() -> None:
    data, steps = linear_onnx(), []
    one = Trial(card_of(data), seconds=60, memory=2 * GIB)
    findings = one.run(lambda: data, steps.append, threading.Semaphore())
    examined = findings.examined
    assert steps == list(range(len(STEPS)))
    assert (findings.parameters, findings.softmax) == (2 * 192 + 2, "none")
    assert examined.deterministic
    assert examined.batch_invariant
    assert examined.gradient_agrees
    assert examined.gradient_error is not None
    assert examined.gradient_error < 1e-3
    assert examined.gradient_ms > 0
    assert examined.forward_ms > 0
    assert examined.row_bytes is not None


def test_a_model_that_needs_too_much_memory_is_stopped() -> None:
    with pytest.raises(ModelTooCostly, match="memory"):
        tried(greedy_onnx(600_000), memory=GIB // 4)  # its largest value takes 460 MB


def test_a_model_that_takes_too_long_is_stopped() -> None:
    began = time.monotonic()
    with pytest.raises(ModelTooCostly, match="longer than 6 s"):
        tried(slow_onnx(200), seconds=6, memory=16 * GIB, input={"height": 64, "width": 64})
    assert time.monotonic() - began < 40


def test_probabilities_are_turned_into_logits() -> None:
    assert found(linear_onnx(end="Softmax")).softmax == "removed"
    assert found(linear_onnx(end="Exp")).softmax == "inverted"
    assert found(linear_onnx(end="Sigmoid")).softmax == "none"


def test_a_network_of_one_row_is_asked_row_by_row() -> None:
    examined = found(linear_onnx(batch=1)).examined
    assert examined.batch_invariant
    assert examined.logits_difference == 0


def test_classes_and_layout_must_be_those_of_the_file() -> None:
    with pytest.raises(InvalidModel, match="answers 3 numbers, but 2 classes"):
        found(linear_onnx(classes=3))
    with pytest.raises(InvalidModel, match="layout is nchw"):
        found(linear_onnx(), input={"height": 8, "width": 8, "layout": "nhwc"})
    with pytest.raises(InvalidModel, match="3 channels, not 1"):
        found(linear_onnx(), input={"height": 8, "width": 8, "channels": 1})
    with pytest.raises(InvalidModel, match="8x8, not 9x9"):
        found(linear_onnx(), input={"height": 9, "width": 9})


def test_answers_must_be_finite() -> None:
    with pytest.raises(InvalidModel, match="answers NaN or infinity to"):
        found(linear_onnx(end="Log"))


def test_weights_must_fit_the_architecture() -> None:
    with pytest.raises(InvalidModel, match="weights do not fit small-cnn"):
        found(linear_safetensors(), architecture="small-cnn")
    with pytest.raises(InvalidModel, match="no architecture named 'vgg'"):
        found(linear_safetensors(), architecture="vgg")


def test_timm_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = linear_safetensors()
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModelUnusable, match=r"touchstone-robustness\[timm\]"):
        found(data, architecture="timm/linear")
    monkeypatch.delitem(__import__("sys").modules, "timm")
    monkeypatch.syspath_prepend(str(stub_timm(tmp_path)))
    assert found(data, architecture="timm/linear").parameters == 2 * 192 + 2
    for name in ("timm/resnet", "timm/hf-hub:someone/something", "timm/../linear", "timm/"):
        with pytest.raises(InvalidModel, match="no architecture named"):
            found(data, architecture=name)
    wrong = save({"1.weight": torch.ones(2, 191), "1.bias": torch.ones(2)})
    with pytest.raises(InvalidModel, match="size mismatch"):
        found(wrong, architecture="timm/linear")
    half = save({name: value.half() for name, value in linear_net().state_dict().items()})
    assert found(half, architecture="timm/linear").examined.gradient_agrees, "in single precision"


class Bent(nn.Module):
    """Answers one thing, and has the gradient of another."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * 4).round() / 4
        return self.net(x + (rounded - x).detach())  # type: ignore[no-any-return]


def test_a_gradient_that_is_not_that_of_the_answers_is_noticed() -> None:
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    device = torch.device("cpu")
    for net, agrees in ((linear_net(), True), (Bent(linear_net()), False)):
        oracle = Oracle(net.eval(), Sight(None, None, None), device)
        assert (gradient_error(oracle, x) <= GRADIENT_TOLERANCE) is agrees


def test_bends_of_a_network_are_no_wrong_gradient() -> None:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(192, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3))
    oracle = Oracle(nn.Sequential(*layers).eval(), Sight(None, None, None), torch.device("cpu"))
    assert gradient_error(oracle, torch.rand(1, 3, 8, 8)) <= GRADIENT_TOLERANCE


BEGUN = 'print(\'{"begun": {"step": 1}}\', flush=True)'


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Trial]:
    """A trial whose child runs this code instead."""

    def made(code: str, *, seconds: float = 30) -> Trial:
        (tmp_path / "pretended_child.py").write_text("import os, sys, time\n" + textwrap.dedent(code))
        environment = {**trial._environment(), "PYTHONPATH": str(tmp_path)}
        monkeypatch.setattr(trial, "_environment", lambda: environment)
        monkeypatch.setattr(trial, "MODULE", "pretended_child")
        return Trial(card_of(linear_onnx()), seconds=seconds, memory=GIB)

    return made


def go(one: Trial, begun: Callable[[int], object] = lambda _: None) -> Findings:
    return one.run(linear_onnx, begun, threading.Semaphore())


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("os.kill(os.getpid(), 11)", InvalidModel, "ended with SIGSEGV, at the step 'build'"),
        ("os.kill(os.getpid(), 4)", InvalidModel, "ended with SIGILL"),
        ("os.kill(os.getpid(), 9)", ModelTooCostly, "memory"),
        ("os.kill(os.getpid(), 24)", ModelTooCostly, "too long"),
        ("print('std::bad_alloc', file=sys.stderr); os.abort()", ModelTooCostly, "memory"),
        ("sys.exit(3)", InvalidModel, "ended with code 3"),
        ("pass", InvalidModel, "ended with code 0"),
        ("print('gibberish')", InvalidModel, "what it never should"),
        ('print(\'{"begun": {"step": 99}}\')', InvalidModel, "what it never should"),
        ('print(\'{"findings": {"parameters": -1}}\')', InvalidModel, "what it never should"),
        ("print('x' * 2**24)", InvalidModel, "what it never should"),
        (f"for _ in range({trial.MOST_LINES}): {BEGUN}", InvalidModel, "what it never should"),
        ('print(\'{"fault": {"code": "internal_error", "detail": "d"}}\')', InvalidModel, "^d$"),
    ],
)
def test_whatever_becomes_of_the_child_is_a_failure_of_the_model(
    pretend: Callable[[str], Trial], code: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        go(pretend(f"{BEGUN}\n{code}"))


def test_a_child_that_never_starts_is_a_fault_of_ours(pretend: Callable[[str], Trial]) -> None:
    with pytest.raises(ModelUnusable, match="did not start"):
        go(pretend("raise ImportError('no torch')"))


def test_the_child_inherits_nothing(
    pretend: Callable[[str], Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET", "swordfish")
    seen = tmp_path / "seen"
    what = "os.getcwd(), sys.flags.safe_path, sorted(os.environ), sorted(os.listdir('/proc/self/fd'))"
    code = f"open({str(seen)!r}, 'w').write(repr(({what})))"
    one = pretend(code)
    with (tmp_path / "open").open("w") as mine:
        os.set_inheritable(mine.fileno(), True)
        with pytest.raises(ModelUnusable):
            go(one)
    folder, safe_path, names, files = eval(seen.read_text())
    assert (folder, safe_path) == ("/", True), "nothing is imported from where we stand"
    assert set(names) <= {"PATH", "LANG", "OMP_NUM_THREADS", "PYTHONPATH", "LC_CTYPE"}
    assert len(files) <= 5, "the three of each process, that of the list, and that of what is written"


@pytest.mark.parametrize(("end", "kind"), [("cancel", Canceled), ("expire", DeadlineExceeded)])
def test_the_child_and_its_offspring_end_at_once(
    pretend: Callable[[str], Trial], tmp_path: Path, end: str, kind: type[Exception]
) -> None:
    pids = tmp_path / "pids"
    one = pretend(
        f"""
        child = os.fork()
        if child:
            open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child}}')
            {BEGUN}
        time.sleep(60)
        """
    )
    began = time.monotonic()
    with pytest.raises(kind):
        go(one, begun=lambda _: getattr(one, end)())
    assert time.monotonic() - began < 40
    for pid in pids.read_text().split():
        wait_until(lambda pid=pid: not alive(int(pid)))  # type: ignore[misc]


CONFINED = """
import re, resource, signal
from touchstone.engine import sandbox
from touchstone.registration.messages import Request

most = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (most, most))
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
sandbox._confine(Request.model_construct(seconds=50.0, memory=2**30))
for line in open("/proc/self/limits"):
    name, soft, hard = re.match(r"(.{26}) *([^ ]+) +([^ ]+)", line).groups()
    if soft == hard:
        print(name.strip(), soft, sep="=")
print("Alarm", signal.alarm(0), sep="=")
"""


def test_a_trial_is_confined_for_good() -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, check=True)
    limits = dict(line.split("=") for line in done.stdout.splitlines())
    assert int(limits["Max address space"]) > GIB
    assert limits["Max open files"] == "32", "where less is allowed already, that stays"
    assert limits["Max file size"] == str(trial_process.WRITTEN_BYTES)
    assert limits["Max core file size"] == "0"
    assert 50 < int(limits["Max cpu time"]) <= 60 * (os.cpu_count() or 1)
    assert 50 < int(limits["Alarm"]) < 60, "it ends even where nobody is left to end it"


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_one_that_waits_for_its_turn_can_be_canceled(pretend: Callable[[str], Trial]) -> None:
    one, gate, reads = pretend("sys.exit(1)"), threading.Semaphore(0), list[bytes]()
    threading.Timer(0.2, one.cancel).start()
    with pytest.raises(Canceled):
        one.run(lambda: reads.append(b"") or b"", lambda _: None, gate)
    assert not reads, "many large files may wait"
    assert not gate.acquire(blocking=False), "it had no turn to give back"


def test_one_that_nobody_wants_any_more_is_not_read(pretend: Callable[[str], Trial]) -> None:
    one, gate, reads = pretend("sys.exit(1)"), threading.Semaphore(), list[bytes]()
    one.expire()
    one.cancel()
    with pytest.raises(DeadlineExceeded):
        one.run(lambda: reads.append(b"") or b"", lambda _: None, gate)
    assert not reads
    assert gate.acquire(blocking=False)


def test_one_that_is_canceled_before_it_starts_ends_at_once(pretend: Callable[[str], Trial]) -> None:
    one, began = pretend("time.sleep(100)", seconds=1000), time.monotonic()

    def read() -> bytes:
        one.cancel()
        return b""

    with pytest.raises(Canceled):
        one.run(read, lambda _: None, threading.Semaphore())
    assert time.monotonic() - began < 50


def test_the_gate_is_left_open(pretend: Callable[[str], Trial]) -> None:
    gate = threading.Semaphore()
    with pytest.raises(InvalidModel):
        pretend(f"{BEGUN}\nsys.exit(1)").run(bytes, lambda _: None, gate)
    assert gate.acquire(blocking=False)


def test_a_child_that_cannot_be_timed_does_not_stay(
    pretend: Callable[[str], Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, started = pretend("time.sleep(60)"), list[subprocess.Popen[bytes]]()
    start = one._start
    monkeypatch.setattr(one, "_start", lambda *files: started.append(start(*files)) or started[0])
    no_thread = patch.object(threading.Timer, "start", side_effect=RuntimeError("can't start new thread"))
    with no_thread, pytest.raises(RuntimeError):
        go(one)
    assert started[0].returncode is not None
