"""The trial of a model in a child process: what it measures, and every way in which it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from onnx import helper
from safetensors.torch import save
from torch import Tensor, nn

from api_tests.support.own_models import (
    build_manifest,
    linear_net,
    linear_onnx,
    linear_safetensors,
    memory_hungry_onnx,
    onnx_file,
    slow_onnx,
    write_timm_stub,
)
from api_tests.support.wait import is_alive, wait_until
from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.errors import DeadlineExceeded, InvalidModel, JobCanceled, ModelTooCostly, ModelUnusable
from touchstone.models.loader import BuiltNetwork
from touchstone.registration import examination, trial, trial_child
from touchstone.registration.examination import probe_model
from touchstone.registration.gradients import GRADIENT_TOLERANCE, gradient_error, measure_gradient
from touchstone.registration.messages import TrialResult, list_steps
from touchstone.registration.trial import Trial
from touchstone.registration.trial_child import TrialChild

GIB = 2**30


def run_trial(data: bytes, *, seconds: float = 60, memory: int = 2 * GIB, **fields: Any) -> TrialResult:
    one = Trial(build_manifest(data, **fields), seconds=seconds, memory=memory)
    return one.run(lambda: data, lambda _: None, threading.Semaphore())


def probe_in_process(data: bytes, **fields: Any) -> TrialResult:
    """The same in this process, for what the process does not matter to."""
    return probe_model(build_manifest(data, **fields), data, lambda _: None)


def test_trial_of_valid_model_runs_all_steps_and_returns_its_probe() -> None:
    data, steps = linear_onnx(), []
    one = Trial(build_manifest(data), seconds=60, memory=2 * GIB)
    result = one.run(lambda: data, steps.append, threading.Semaphore())
    probe = result.probe
    assert steps == list(range(len(list_steps(examples=False))))
    assert (result.parameters, result.end.activation) == (2 * 192 + 2, ())
    assert probe.deterministic
    assert probe.batch_invariant
    assert probe.gradient_agrees
    assert probe.gradient_error is not None
    assert probe.gradient_error < 1e-3
    assert probe.gradient_ms > 0
    assert probe.forward_ms > 0
    assert probe.row_bytes is not None


COMPILER_PROGRAM = """
import sys
from api_tests.support.own_models import build_manifest, linear_onnx
from touchstone.registration import trial_process
from touchstone.registration.examination import complete_manifest
if "leave" in sys.argv:
    trial_process._leave_out_compiler()
data = linear_onnx(end="Exp")
print(complete_manifest(build_manifest(data), data).softmax, "torch._dynamo.eval_frame" in sys.modules)
"""


def test_trial_of_an_onnx_file_does_not_import_the_compiler() -> None:
    for arguments, right in (["leave"], "inverted False"), ([], "inverted True"):
        command = [sys.executable, "-c", COMPILER_PROGRAM, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == right, "without the second, leaving it out would not be needed"


def test_trial_that_needs_too_much_memory_is_stopped() -> None:
    with pytest.raises(ModelTooCostly, match="memory"):
        run_trial(memory_hungry_onnx(600_000), memory=GIB // 4)  # its largest value takes 460 MB


def test_trial_that_takes_too_long_is_stopped() -> None:
    began = time.monotonic()
    with pytest.raises(ModelTooCostly, match="longer than 6 s"):
        run_trial(slow_onnx(200), seconds=6, memory=16 * GIB, input={"height": 64, "width": 64})
    assert time.monotonic() - began < 40


def test_softmax_outputs_are_turned_into_logits() -> None:
    for end, softmax in (("Softmax", "removed"), ("Exp", "inverted"), ("Sigmoid", "none")):
        data = linear_onnx(end=end)
        manifest = build_manifest(data)
        assert probe_model(manifest, data, lambda _: None).complete_manifest(manifest).softmax == softmax


@pytest.mark.parametrize("batch", [1, 2])
def test_model_with_a_fixed_batch_is_queried_in_such_batches(batch: int) -> None:
    probe = probe_in_process(linear_onnx(batch=batch)).probe
    assert probe.batch_invariant
    assert probe.logits_difference == 0


def test_manifest_that_contradicts_the_model_file_is_refused() -> None:
    with pytest.raises(InvalidModel, match="answers 3 numbers, but 2 classes"):
        probe_in_process(linear_onnx(classes=3))
    with pytest.raises(InvalidModel, match="layout is nchw"):
        probe_in_process(linear_onnx(), input={"height": 8, "width": 8, "layout": "nhwc"})
    with pytest.raises(InvalidModel, match=r"input\.channels: .* it is 3, not 1"):
        probe_in_process(linear_onnx(), input={"height": 8, "width": 8, "channels": 1})
    with pytest.raises(InvalidModel, match=r"input\.height: .* it is 8, not 9"):
        probe_in_process(linear_onnx(), input={"height": 9, "width": 9})


def test_model_with_nan_or_infinite_outputs_is_refused() -> None:
    with pytest.raises(InvalidModel, match=r"answers NaN or infinity to (black|white|gray|noise)"):
        probe_in_process(linear_onnx(end="Log"))


def rooted_onnx(*, middle: float, scale: float = 1.0) -> bytes:
    """Logits of x + sqrt(scale * |x - middle|), whose gradient is not finite where the root is 0."""
    layer: Any = linear_net()[1]  # type: ignore[index]
    weights = {"w": layer.weight.detach().numpy(), "middle": np.float32(middle), "scale": np.float32(scale)}
    nodes = [
        helper.make_node("Sub", ["x", "middle"], ["from_middle"]),
        helper.make_node("Abs", ["from_middle"], ["distance"]),
        helper.make_node("Mul", ["distance", "scale"], ["scaled"]),
        helper.make_node("Sqrt", ["scaled"], ["root"]),
        helper.make_node("Add", ["x", "root"], ["sum"]),
        helper.make_node("Flatten", ["sum"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["y"], transB=1),
    ]
    return onnx_file(nodes, weights, "y")


def test_model_whose_gradient_is_not_finite_at_some_images_is_registered() -> None:
    for middle, name in ((0.0, "black"), (0.5, "gray")):
        assert probe_in_process(rooted_onnx(middle=middle)).probe.gradient_not_finite_at == (name,)
    probe = run_trial(rooted_onnx(middle=0.0, scale=0.0)).probe
    assert probe.gradient_not_finite_at == ("black", "white", "gray", "noise")
    assert (probe.gradient_error, probe.gradient_agrees) == (None, False)


def test_weights_that_do_not_fit_the_architecture_are_refused() -> None:
    with pytest.raises(InvalidModel, match="weights do not fit small-cnn"):
        probe_in_process(linear_safetensors(), architecture="small-cnn")
    with pytest.raises(InvalidModel, match="no architecture named 'vgg'"):
        probe_in_process(linear_safetensors(), architecture="vgg")


def test_timm_architectures_need_the_timm_extra_and_fitting_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = linear_safetensors()
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModelUnusable, match=r"touchstone-robustness\[timm\]"):
        probe_in_process(data, architecture="timm/linear")
    monkeypatch.delitem(__import__("sys").modules, "timm")
    monkeypatch.syspath_prepend(str(write_timm_stub(tmp_path)))
    assert probe_in_process(data, architecture="timm/linear").parameters == 2 * 192 + 2
    for name in ("timm/resnet", "timm/hf-hub:someone/something", "timm/../linear", "timm/"):
        with pytest.raises(InvalidModel, match="no architecture named"):
            probe_in_process(data, architecture=name)
    wrong = save({"1.weight": torch.ones(2, 191), "1.bias": torch.ones(2)})
    with pytest.raises(InvalidModel, match="size mismatch"):
        probe_in_process(wrong, architecture="timm/linear")
    half = save({name: value.half() for name, value in linear_net().state_dict().items()})
    assert probe_in_process(half, architecture="timm/linear").probe.gradient_agrees, "in single precision"


class NetWithWrongGradient(nn.Module):
    """Answers one thing, and has the gradient of another."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * 4).round() / 4
        return self.net(x + (rounded - x).detach())  # type: ignore[no-any-return]


def test_gradient_error_is_large_when_gradient_contradicts_outputs() -> None:
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    device = torch.device("cpu")
    for net, agrees in ((linear_net(), True), (NetWithWrongGradient(linear_net()), False)):
        oracle = TorchOracle(net.eval(), Preprocessing(None, None, None), device)
        assert (gradient_error(oracle, measure_gradient(oracle, x)) <= GRADIENT_TOLERANCE) is agrees


def test_relu_kinks_do_not_count_as_gradient_error() -> None:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(192, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3))
    oracle = TorchOracle(nn.Sequential(*layers).eval(), Preprocessing(None, None, None), torch.device("cpu"))
    gradient = measure_gradient(oracle, torch.rand(1, 3, 8, 8))
    assert gradient_error(oracle, gradient) <= GRADIENT_TOLERANCE


class NetWithNoise(nn.Module):
    """Answers not quite the same each time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 1e-4 * torch.rand(1)  # type: ignore[no-any-return]


class NetOfManyValues(NetWithNoise):
    """Has 192 x 8,192 values for each row on the way, besides its answers."""

    def forward(self, x: Tensor) -> Tensor:
        many = x.flatten(1).repeat(1, 8192)
        return self.net(x) + (many * many).mean(1, keepdim=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("wrap", "deterministic"), [(NetWithNoise, False), (NetOfManyValues, True)])
def test_trial_measures_determinism_and_memory(
    monkeypatch: pytest.MonkeyPatch, wrap: type[NetWithNoise], deterministic: bool
) -> None:
    monkeypatch.setattr(examination, "build_network", lambda *_: BuiltNetwork(wrap(linear_net())))
    probe = probe_in_process(linear_onnx()).probe
    assert probe.deterministic is deterministic
    assert probe.row_bytes is not None
    least = 4 * 192 * 8192
    if wrap is NetOfManyValues:
        assert least < probe.row_bytes < 10 * least
    else:
        assert probe.row_bytes < least / 2


STEP_STARTED = 'print(\'{"started": {"step": 1}}\', flush=True)'


@pytest.fixture
def fake_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Trial]:
    """A trial whose child runs this code instead."""

    def make(code: str, *, seconds: float = 30) -> Trial:
        (tmp_path / "fake_child.py").write_text("import os, sys, time\n" + textwrap.dedent(code))
        environment = {**trial_child._environment(), "PYTHONPATH": str(tmp_path)}
        monkeypatch.setattr(trial_child, "_environment", lambda: environment)
        monkeypatch.setattr(trial_child, "MODULE", "fake_child")
        return Trial(build_manifest(linear_onnx()), seconds=seconds, memory=GIB)

    return make


def run_fake_trial(one: Trial, on_step: Callable[[int], object] = lambda _: None) -> TrialResult:
    return one.run(linear_onnx, on_step, threading.Semaphore())


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
        ("print('gibberish')", InvalidModel, "an invalid message"),
        ('print(\'{"started": {"step": 99}}\')', InvalidModel, "an invalid message"),
        ('print(\'{"result": {"parameters": -1}}\')', InvalidModel, "an invalid message"),
        ("print('x' * 2**24)", InvalidModel, "an invalid message"),
        (f"for _ in range({trial.MAX_LINES}): {STEP_STARTED}", InvalidModel, "an invalid message"),
        ('print(\'{"error": {"code": "internal_error", "detail": "d"}}\')', InvalidModel, "^d$"),
    ],
)
def test_child_crash_or_bad_output_is_reported_as_model_error(
    fake_trial: Callable[[str], Trial], code: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        run_fake_trial(fake_trial(f"{STEP_STARTED}\n{code}"))


def test_child_that_fails_to_start_raises_model_unusable(fake_trial: Callable[[str], Trial]) -> None:
    with pytest.raises(ModelUnusable, match="did not start"):
        run_fake_trial(fake_trial("raise ImportError('no torch')"))


def test_child_inherits_no_secrets_files_or_working_directory(
    fake_trial: Callable[[str], Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET", "swordfish")
    seen = tmp_path / "seen"
    what = "os.getcwd(), sys.flags.safe_path, sorted(os.environ), sorted(os.listdir('/proc/self/fd'))"
    code = f"open({str(seen)!r}, 'w').write(repr(({what})))"
    one = fake_trial(code)
    with (tmp_path / "open").open("w") as mine:
        os.set_inheritable(mine.fileno(), True)
        with pytest.raises(ModelUnusable):
            run_fake_trial(one)
    folder, safe_path, names, files = eval(seen.read_text())
    assert (folder, safe_path) == ("/", True), "nothing is imported from the working directory"
    assert set(names) <= {"PATH", "LANG", "OMP_NUM_THREADS", "PYTHONPATH", "LC_CTYPE"}
    assert len(files) <= 5, "the three of each process, that of the list, and that of what is written"


@pytest.mark.parametrize(("end", "kind"), [("cancel", JobCanceled), ("expire", DeadlineExceeded)])
def test_child_and_its_descendants_end_on_cancel_or_deadline(
    fake_trial: Callable[[str], Trial], tmp_path: Path, end: str, kind: type[Exception]
) -> None:
    pids = tmp_path / "pids"
    one = fake_trial(
        f"""
        child = os.fork()
        if child:
            open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child}}')
            {STEP_STARTED}
        time.sleep(60)
        """
    )
    began = time.monotonic()
    with pytest.raises(kind):
        run_fake_trial(one, on_step=lambda _: getattr(one, end)())
    assert time.monotonic() - began < 40
    for pid in pids.read_text().split():
        wait_until(lambda pid=pid: not is_alive(int(pid)))  # type: ignore[misc]


def test_trial_waiting_for_the_lock_can_be_canceled(fake_trial: Callable[[str], Trial]) -> None:
    one, lock, reads = fake_trial("sys.exit(1)"), threading.Semaphore(0), list[bytes]()
    threading.Timer(0.2, one.cancel).start()
    with pytest.raises(JobCanceled):
        one.run(lambda: reads.append(b"") or b"", lambda _: None, lock)
    assert not reads, "many large files may wait"
    assert not lock.acquire(blocking=False), "it never held the lock"


def test_expired_trial_ends_without_reading_its_file(fake_trial: Callable[[str], Trial]) -> None:
    one, lock, reads = fake_trial("sys.exit(1)"), threading.Semaphore(), list[bytes]()
    one.expire()
    one.cancel()
    with pytest.raises(DeadlineExceeded):
        one.run(lambda: reads.append(b"") or b"", lambda _: None, lock)
    assert not reads
    assert lock.acquire(blocking=False)


def test_trial_canceled_before_its_child_starts_ends_at_once(fake_trial: Callable[[str], Trial]) -> None:
    one, began = fake_trial("time.sleep(100)", seconds=1000), time.monotonic()

    def read() -> bytes:
        one.cancel()
        return b""

    with pytest.raises(JobCanceled):
        one.run(read, lambda _: None, threading.Semaphore())
    assert time.monotonic() - began < 50


def test_lock_is_released_after_a_failed_trial(fake_trial: Callable[[str], Trial]) -> None:
    lock = threading.Semaphore()
    with pytest.raises(InvalidModel):
        fake_trial(f"{STEP_STARTED}\nsys.exit(1)").run(bytes, lambda _: None, lock)
    assert lock.acquire(blocking=False)


def test_child_is_ended_when_its_timer_cannot_start(fake_trial: Callable[[str], Trial]) -> None:
    one, started = fake_trial("time.sleep(60)"), list[TrialChild]()

    def start() -> TrialChild:
        started.append(TrialChild())
        return started[0]

    no_thread = patch.object(threading.Timer, "start", side_effect=RuntimeError("can't start new thread"))
    with no_thread, pytest.raises(RuntimeError):
        one.run(linear_onnx, lambda _: None, threading.Semaphore(), start=start)
    assert started[0].returncode == -signal.SIGKILL
