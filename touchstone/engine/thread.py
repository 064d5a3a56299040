"""One thread per device: the engine that a worker runs its jobs on."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from touchstone.engine.batching import Batcher, Counted, Task
from touchstone.engine.device import choose, keep_blocks
from touchstone.engine.figures import Figures
from touchstone.engine.oracle import Oracle
from touchstone.engine.probe import load_oracle
from touchstone.engine.queries import Answer, Asking, Noisy, Query
from touchstone.errors import WorkerStopping
from touchstone.models.manifest import Manifest
from touchstone.models.measured import Probe
from touchstone.models.residency import Residency
from touchstone.models.shelf import ZOO, Shelf


class Running:
    """A task on the engine, as its owner sees it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._future: Future[Any] = Future()
        task.done = self._settle

    @property
    def queries(self) -> Counted:
        """Queries answered so far."""
        return self._task.queries

    def cancel(self) -> None:
        """Ask for the task to end before the next step; `result` then raises Canceled."""
        self._task.canceled = True

    def expire(self) -> None:
        """Let the deadline have passed: the task ends before the next step, as it does when late."""
        self._task.deadline = float("-inf")

    def result(self) -> Any:
        """Wait for what the plan returns; raises what ended it."""
        return self._future.result()

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if error is None:
            self._future.set_result(result)
        else:
            self._future.set_exception(error)


class Engine:
    """A thread that owns a device and runs a `Batcher` on it.

    `steps` counts finished slices: while `busy`, it moves unless the device or a model hangs.
    """

    def __init__(self, device: str = "auto", memory_budget: int = 2**31, shelf: Shelf = ZOO) -> None:
        self.device = choose(device)
        self.shelf = shelf
        self.models: Residency[Manifest, Oracle] = Residency(memory_budget, self._load)
        self.steps = 0
        self._probes: dict[str, Probe] = {}
        self._passes = Figures()
        self._batcher = Batcher()
        self._batcher.observe = self._passes.observe
        self._arrived: list[Task] = []
        self._wake = threading.Condition()
        self._stopping = False
        keep_blocks()  # before the thread is given an arena of its own
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether any task is running or waits to."""
        return bool(self._arrived or len(self._batcher))

    def figures(self) -> dict[str, Any]:
        """What it has done so far and what it keeps loaded, as JSON."""
        return {
            **self._passes.snapshot(),
            "device": str(self.device),
            "resident_models": self._sizes(),
        }

    def probes(self) -> dict[str, Probe]:
        """What the last load of each model measured, by the model's digest."""
        return dict(self._probes)

    def start(
        self,
        plan: Asking[Any],
        oracle: Oracle,
        *,
        deadline: float | None = None,
        deterministic: bool = False,
        answered: Callable[[Query | Noisy, Answer, Counted], None] | None = None,
    ) -> Running:
        """Run a plan among the others; `deadline` in seconds from now. `answered` is called after each
        answer, on the engine's thread.
        """
        until = float("inf") if deadline is None else time.monotonic() + deadline
        task = Task(plan, oracle, deterministic, until, answered)
        running = Running(task)
        with self._wake:
            if self._stopping:
                raise WorkerStopping("the worker is shutting down")
            self._arrived.append(task)
            self._wake.notify()
        return running

    def stop(self) -> None:
        """End the thread; tasks still running fail with WorkerStopping."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _load(self, card: Manifest) -> tuple[Oracle, int]:
        oracle, probe = load_oracle(card, self.device, self.shelf)
        self._probes[card.digest] = probe
        return oracle, probe.bytes

    def _sizes(self) -> dict[str, int]:
        """Bytes that models take, all versions of one together."""
        sizes: Counter[str] = Counter()
        for card, size in self.models.resident().items():
            sizes[card.id] += size
        return dict(sizes)

    def _run(self) -> None:
        torch.set_flush_denormal(True)
        while self._admit():
            try:
                self._batcher.step()
            except Exception as error:  # noqa: BLE001 - a fault of the batcher must not leave its tasks waiting
                self._batcher.abandon(error)
            self.steps += 1
        for task in self._batcher.tasks() + self._arrived:
            task.done(None, WorkerStopping("the worker is shutting down"))

    def _admit(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or self.busy)
            if self._stopping:
                return False
            arrived, self._arrived = self._arrived, []
        for task in arrived:
            self._batcher.add(task)
        return True
