"""A worker with fake jobs: their parameters say what they do.

Run as a program, it serves. `start` forks one from a process that has everything imported.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from touchstone import logs
from touchstone.errors import JobCanceled, ModelUnusable, NonFiniteOutput, WorkerStopping
from touchstone.evaluation.run import JobOutcome
from touchstone.ledger.records import Progress, Submission, Timings
from touchstone.settings import Settings
from workers.lease_renewal import LeaseRenewal
from workers.quarantine import serve_quarantine
from workers.serve import serve

STEP_SECONDS = 0.02


class FakeEngine:
    """Counts the steps of all fake jobs."""

    def __init__(self) -> None:
        self.steps = 0
        self.running = self.started = 0
        self.release_hang = threading.Event()  # ends hanging jobs

    @property
    def busy(self) -> bool:
        return self.running > 0

    def is_stepping(self, task: object) -> bool:
        return isinstance(task, FakeTask) and task.hanging

    def metrics(self) -> dict[str, Any]:
        return {"device": "pretended"}

    def probes(self) -> dict[str, Any]:
        return {}

    def stop(self) -> None:
        pass


class FakeTask:
    def __init__(self) -> None:
        self.canceled = threading.Event()
        self.expired = self.hanging = False

    def cancel(self) -> None:
        self.canceled.set()

    def expire(self) -> None:
        self.expired = True
        self.canceled.set()


def run(
    submission: Submission,
    png: bytes,
    *,
    engine: FakeEngine,
    deadline: float | None,
    started: Any,
    report: Any,
    prior: Any,
) -> JobOutcome:
    """Do what `parameters` say: `steps` of 20 ms each, lines in the file `diary`, and `then` how to end."""
    parameters = submission.parameters
    write_diary(parameters, "begin")
    task = FakeTask()
    started(task)
    engine.running += 1
    engine.started += 1
    try:
        for step in range(parameters.get("steps", 1)):
            if task.canceled.wait(STEP_SECONDS):
                write_diary(parameters, "canceled")
                raise JobCanceled("the job was canceled")
            engine.steps += 1
            report(Progress(done=step + 1, total=parameters["steps"]), {"step": float(step)})
        task.hanging = parameters.get("then") == "hang"
        end_job(parameters.get("then"), engine)
    finally:
        engine.running -= 1
    write_diary(parameters, "end")
    result = (
        {"read": len(png), "bad": float("nan")} if parameters.get("then") == "nan" else {"read": len(png)}
    )
    return JobOutcome(result, {"adversarial.png": (b"an image of " + png, "image/png")}, Timings(compute=1.0))


def end_job(ending: str | None, engine: FakeEngine) -> None:
    if ending == "fail":
        raise NonFiniteOutput("The model answered NaN.", field="image", rows=1)
    if ending == "starve":
        raise MemoryError
    if ending == "starve as it loads":
        raise ModelUnusable("digits: the weights do not fit") from MemoryError()
    if ending == "too many files":
        raise OSError(errno.EMFILE, "Too many open files")
    if ending == "stop":
        raise WorkerStopping("the engine was stopped")
    if ending == "break":
        raise RuntimeError("the password is swordfish")
    if ending == "seize":
        ctypes.PyDLL(None).sleep(7)  # holds the interpreter lock
    if ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending in ("hang", "wait"):
        engine.release_hang.wait()


def write_diary(parameters: dict[str, Any], line: str) -> None:
    if "diary" in parameters:
        with Path(parameters["diary"]).open("a") as diary:
            diary.write(line + "\n")


def main(settings: Settings | None = None) -> int:
    logs.configure("info")
    settings = settings or Settings()
    renewal, engine = LeaseRenewal(settings), FakeEngine()
    run_fake = partial(run, engine=engine)
    if sys.argv[1:2] == ["--quarantine"]:
        return serve_quarantine(sys.argv[2], settings, engine, run_fake, renewal=renewal)
    return serve(settings, engine, run_fake, renewal=renewal, module=__spec__.name)


def _do_nothing(_: Settings) -> None:
    """Nothing to prepare."""


def start(settings: Settings, *, prepare: Callable[[Settings], None] = _do_nothing) -> BaseProcess:
    """Start a worker in a separate process, which first calls `prepare` and writes to workers.log."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload([__name__])
    process = forking.Process(target=_run_worker, args=[settings, prepare])
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(path)):
        process.start()
    return process


def _run_worker(settings: Settings, prepare: Callable[[Settings], None]) -> None:
    log = os.open(settings.home / "workers.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    prepare(settings)
    sys.exit(main(settings))


if __name__ == "__main__":
    sys.exit(main())
