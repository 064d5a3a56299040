"""The engine that a worker runs its jobs on: a thread for its device, and one for each remote model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

from touchstone.engine.device import choose, keep_blocks
from touchstone.engine.oracles.oracle import AnyOracle
from touchstone.engine.oracles.probe import load_oracle
from touchstone.engine.oracles.remote import RemoteOracle, Ways
from touchstone.engine.queries import Answer, Asking, Noisy, Query
from touchstone.engine.scheduler.batcher import Counted, Task
from touchstone.engine.scheduler.device_thread import Lane, Running
from touchstone.errors import ModelUnusable, WorkerStopping
from touchstone.models.cache import Residency
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Probe
from touchstone.models.store import ZOO, Shelf

IDLE_SECONDS = 30.0
"""After so long without a question the thread of a remote model ends, and its connections are closed."""


class Engine:
    """Lanes for plans: one for the device, and one for each remote model, which nobody else waits for.

    `steps` counts the device's finished slices: while `busy`, it moves unless the device or a model hangs. A
    remote model may be slow without that being a fault of the engine's, so its lane does not count.
    """

    def __init__(
        self,
        device: str = "auto",
        memory_budget: int = 2**31,
        shelf: Shelf = ZOO,
        ways: Ways | None = None,
    ) -> None:
        self.device = choose(device)
        self.shelf = shelf
        self.models: Residency[Manifest, AnyOracle] = Residency(memory_budget, self._load)
        self._ways = ways
        self._probes: dict[str, Probe] = {}
        self._lane = Lane("engine")
        self._remote: WeakKeyDictionary[RemoteOracle, Lane] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._stopping = False
        keep_blocks()  # before the thread is given an arena of its own
        self._lane.wake()

    @property
    def steps(self) -> int:
        """Finished slices of the device."""
        return self._lane.steps

    @property
    def busy(self) -> bool:
        """Whether the device has any task, running or waiting."""
        return self._lane.busy

    def figures(self) -> dict[str, Any]:
        """What it has done so far and what it keeps loaded, as JSON."""
        with self._lock:
            remote = {oracle.card.id: lane.figures() for oracle, lane in self._remote.items()}
        return {
            **self._lane.figures(),
            "device": str(self.device),
            "resident_models": self._resident(),
            "remote_models": remote,
        }

    def probes(self) -> dict[str, Probe]:
        """What the last load of each model measured, by the model's digest."""
        return dict(self._probes)

    def start(
        self,
        plan: Asking[Any],
        oracle: AnyOracle,
        *,
        deadline: float | None = None,
        deterministic: bool = False,
        answered: Callable[[Query | Noisy, Answer, Counted], None] | None = None,
        owner: str = "",
    ) -> Running:
        """Run a plan among the others; `deadline` in seconds from now. `answered` is called after each
        answer, on the thread of the oracle's lane.
        """
        until = float("inf") if deadline is None else time.monotonic() + deadline
        task = Task(plan, oracle, deterministic, until, answered, owner)
        return self._lane_of(oracle).start(task)

    def stop(self) -> None:
        """End all threads; tasks still running fail with WorkerStopping."""
        with self._lock:
            self._stopping = True
            lanes = [self._lane, *self._remote.values()]
        for lane in lanes:
            lane.stop()

    def remote(self, card: Manifest) -> RemoteOracle:
        """An oracle that asks behind the address of a card. Raises ModelUnusable, AddressRefused."""
        if self._ways is None:
            raise ModelUnusable(f"{card.id} is a remote model, which only a worker may ask")
        return self._ways.to(card)

    def _lane_of(self, oracle: AnyOracle) -> Lane:
        if not isinstance(oracle, RemoteOracle):
            return self._lane
        with self._lock:
            if self._stopping:
                raise WorkerStopping("the worker is shutting down")
            if oracle not in self._remote:
                self._remote[oracle] = _lane_for(oracle)
            return self._remote[oracle]

    def _load(self, card: Manifest) -> tuple[AnyOracle, int]:
        if card.kind == "remote":
            return self.remote(card), 0
        oracle, probe = load_oracle(card, self.device, self.shelf)
        self._probes[card.digest] = probe
        return oracle, probe.bytes

    def _resident(self) -> list[dict[str, Any]]:
        return [
            {"id": card.id, "digest": card.digest, "bytes": size}
            for card, size in self.models.resident().items()
        ]


def _lane_for(oracle: RemoteOracle) -> Lane:
    """A lane that does not keep the oracle alive."""
    rest = WeakMethod(oracle.rest)

    def idle() -> None:
        if (close := rest()) is not None:
            close()

    return Lane(f"remote {oracle.card.id}", patience=IDLE_SECONDS, idle=idle)
