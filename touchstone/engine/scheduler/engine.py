"""The engine that a worker runs its jobs on: a thread for its device, and one for each remote model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

from touchstone.engine.device import choose_device, tune_allocator
from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.oracles.probe import load_oracle
from touchstone.engine.oracles.remote import RemoteAccess, RemoteOracle
from touchstone.engine.queries import Answer, AnyQuery, PlanOf
from touchstone.engine.scheduler.device_thread import DeviceThread, TaskHandle
from touchstone.engine.scheduler.step_limit import measure_slowness
from touchstone.engine.scheduler.task import QueryCount, Task
from touchstone.errors import ModelUnusable, WorkerStopping
from touchstone.memory import physical_memory
from touchstone.models.cache import ModelCache
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Probe
from touchstone.models.store import ZOO, ModelStore
from touchstone.settings import settings

IDLE_SECONDS = 30.0
"""After so long without a query the thread of a remote model ends, and its connections are closed."""


class Engine:
    """Threads that run plans: one for the device, and one for each remote model, so that a slow one delays no
    other.

    `steps` counts the finished passes of the device: while `busy`, it grows unless the device or a model
    hangs. A remote model may be slow without a fault of the engine, so its thread does not count.
    A plan may take `step_seconds` of processor time between two passes (unset: those of the settings), more
    on a slow machine; a task that takes longer ends as TimeExceeded. What running tasks may need together for
    their images is bounded by `job_memory` bytes (unset: half of the worker's); others wait.
    """

    def __init__(
        self,
        device: str = "auto",
        memory_budget: int = 2**31,
        store: ModelStore = ZOO,
        remote_access: RemoteAccess | None = None,
        *,
        step_seconds: float | None = None,
        job_memory: float | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.store = store
        self.models: ModelCache[Manifest, Oracle] = ModelCache(memory_budget, self._load)
        self._remote_access = remote_access
        self._probes: dict[str, Probe] = {}
        seconds = settings().step_seconds if step_seconds is None else step_seconds
        self.step_limit = seconds * measure_slowness()
        memory = _memory_for_jobs() if job_memory is None else job_memory
        self._device_thread = DeviceThread("engine", step_limit=self.step_limit, memory=memory)
        self._remote_threads: WeakKeyDictionary[RemoteOracle, DeviceThread] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._stopping = False
        tune_allocator()  # before the thread gets an arena of its own
        self._device_thread.ensure_running()

    @property
    def steps(self) -> int:
        """Finished passes of the device."""
        return self._device_thread.steps

    @property
    def busy(self) -> bool:
        """Whether the device has any task, running or waiting."""
        return self._device_thread.busy

    def is_stepping(self, task: object) -> bool:
        """Whether the device is at work on this task, or was last: where it hangs, that is the reason."""
        return isinstance(task, TaskHandle) and task.is_one_of(self._device_thread.stepping)

    def metrics(self) -> dict[str, Any]:
        """Metrics of its passes and the models that it keeps loaded, as JSON."""
        with self._lock:
            remote = {oracle.manifest.id: thread.metrics() for oracle, thread in self._remote_threads.items()}
        return {
            **self._device_thread.metrics(),
            "device": str(self.device),
            "resident_models": self._resident_models(),
            "remote_models": remote,
        }

    def probes(self) -> dict[str, Probe]:
        """What the last load of each model measured, by the model's digest."""
        return dict(self._probes)

    def start(
        self,
        plan: PlanOf[Any],
        oracle: Oracle,
        *,
        deadline: float | None = None,
        deterministic: bool = False,
        on_answer: Callable[[AnyQuery, Answer, QueryCount], None] | None = None,
        owner: str = "",
        expires: bool = True,
        noise_key: tuple[int, ...] = (),
        memory: int = 0,
    ) -> TaskHandle:
        """Run a plan among the others; `deadline` in seconds from now. `on_answer` is called after each
        answer, on the oracle's thread. One that does not `expire` ignores that its job is overdue.
        `noise_key` seeds a model that answers at random. A plan that may need `memory` bytes for its images
        waits while others have them.
        """
        until = float("inf") if deadline is None else time.monotonic() + deadline
        task = Task(
            *(plan, oracle, deterministic, until, on_answer, memory, owner),
            expires=expires,
            noise_key=noise_key,
        )
        return self._thread_of(oracle).submit(task)

    def stop(self) -> None:
        """End all threads; tasks still running fail with WorkerStopping."""
        with self._lock:
            self._stopping = True
            threads = [self._device_thread, *self._remote_threads.values()]
        for thread in threads:
            thread.stop()

    def check_access(self, manifest: Manifest, tenant: str) -> None:
        """Raise ModelUnusable where a tenant may not use the secret of a remote model; to be called before
        its oracle is.
        """
        if self._remote_access is not None:
            self._remote_access.check(manifest, tenant)

    def remote_oracle(self, manifest: Manifest) -> RemoteOracle:
        """An oracle for the remote model of a manifest. Raises ModelUnusable, AddressRefused."""
        if self._remote_access is None:
            raise ModelUnusable(f"{manifest.id} is a remote model, which only a worker may query")
        return self._remote_access.oracle_for(manifest)

    def _thread_of(self, oracle: Oracle) -> DeviceThread:
        if not isinstance(oracle, RemoteOracle):
            return self._device_thread
        with self._lock:
            if self._stopping:
                raise WorkerStopping("the worker is shutting down")
            if oracle not in self._remote_threads:
                self._remote_threads[oracle] = _create_remote_thread(oracle, self.step_limit)
            return self._remote_threads[oracle]

    def _load(self, manifest: Manifest) -> tuple[Oracle, int]:
        if manifest.kind == "remote":
            return self.remote_oracle(manifest), 0
        oracle, probe = load_oracle(manifest, self.device, self.store)
        self._probes[manifest.digest] = probe
        return oracle, probe.bytes

    def _resident_models(self) -> list[dict[str, Any]]:
        return [
            {"id": manifest.id, "digest": manifest.digest, "bytes": size}
            for manifest, size in self.models.loaded_sizes().items()
        ]


def _memory_for_jobs() -> float:
    """Bytes for the images of all jobs: half of what the worker has, so that models and results have room."""
    return (settings().worker_memory or physical_memory()) / 2


def _create_remote_thread(oracle: RemoteOracle, step_limit: float) -> DeviceThread:
    """A thread that does not keep the oracle alive."""
    close_idle = WeakMethod(oracle.close_idle)

    def on_idle() -> None:
        if (close := close_idle()) is not None:
            close()

    return DeviceThread(
        f"remote {oracle.manifest.id}", idle_seconds=IDLE_SECONDS, on_idle=on_idle, step_limit=step_limit
    )
