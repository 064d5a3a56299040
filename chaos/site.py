"""The service of a campaign: the processes of `touchstone up`, with proxies between them and the ledger."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from chaos import processes
from chaos.client import send_request
from chaos.journal import Journal, WorkerLoss
from chaos.processes import API, WORKER, ServiceProgram
from chaos.proxy import Proxy
from chaos.receiver import OTHERS, Receiver
from touchstone.errors import LedgerUnavailable
from touchstone.ledger import address
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL
from touchstone.ledger.server import process_id
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.ledger.webhooks import signatures
from touchstone.ledger.webhooks.endpoints import JOB_EVENTS
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.supervisor import valkey

CHECK_SECONDS = 0.01
OTHER_TENANT = "other"
"""A tenant with an endpoint for all its jobs, and without jobs."""


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> float:
    """Wait until it is true; returns how long that took, or raises `TimeoutError`."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"not true after {seconds:g} s")
        time.sleep(CHECK_SECONDS)
    return time.monotonic() - begun


class Site:
    """Valkey, an API and some workers; what dies is restarted at once, as `touchstone up` does."""

    def __init__(self, home: Path, *, workers: int, **settings: float) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.valkey = valkey.start(home)
        self.api_proxy, self.worker_proxy = (Proxy(address.socket_path(home)) for _ in range(2))
        self.receiver = Receiver(Journal(home / "received.jsonl"))
        defaults = {
            "home": home,
            "port": _free_port(),
            "outgoing_allow": self.receiver.address,
            "disk_reserve": 0,  # the disk is to be filled to the last byte
        }
        self._settings = Settings.model_validate({**defaults, **settings})
        self.ledger = Ledger(self.valkey.url, self._settings, open_blobs(self._settings))
        self._register_receiver()
        self.clock = 0.0
        """By how many seconds the clocks of newly started workers are ahead."""
        self._losses = Journal(home / "losses.jsonl")
        self.api = self._start(API)
        self.workers = [self._start(WORKER) for _ in range(workers)]
        self._closing = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._supervisor.start()

    def _register_receiver(self) -> None:
        self.receiver.secret, _ = TenantLedger.of(self.ledger, LOCAL).endpoints.rotate()
        secret, url = signatures.new_secret(), self.receiver.url(OTHERS)
        TenantLedger.of(self.ledger, OTHER_TENANT).endpoints.add(
            url, JOB_EVENTS, description="", secret=secret
        )

    @property
    def port(self) -> int:
        """The port of the API."""
        return self._settings.port

    @property
    def blobs(self) -> Path:
        """The folder of uploads and results."""
        return self.home / "blobs"

    @property
    def settings(self) -> Settings:
        """Those of API and workers, except the address of the ledger: each has its own proxy."""
        return self._settings

    def _start(self, program: ServiceProgram) -> BaseProcess:
        proxy = self.api_proxy if program is API else self.worker_proxy
        settings = self._settings.model_copy(update={"redis_url": proxy.url})
        return processes.start(program, settings, clock=self.clock if program is WORKER else 0.0)

    def _supervise(self) -> None:
        while not self._closing.wait(CHECK_SECONDS):
            self.workers = [one if one.is_alive() else self._replace(one) for one in self.workers]
            if not self.api.is_alive():
                self.api = self._start(API)

    def _replace(self, dead: BaseProcess) -> BaseProcess:
        self.record_loss(dead)
        return self._start(WORKER)

    def record_loss(self, process: BaseProcess) -> None:
        """Record that a worker is lost: it is dead, or does not respond."""
        self._losses.write(WorkerLoss(process.pid or 0, time.time()))

    def is_ready(self) -> bool:
        """Whether everything works."""
        return self.all_alive() and send_request(self.port, "GET", "/readyz")[0] == "200"

    def all_alive(self) -> bool:
        """Whether every worker has sent a heartbeat."""
        return self._alive() >= {process.pid for process in self.workers}

    def wait_until_working(self) -> None:
        """Wait until everything works, and a job was claimed after that."""
        wait_until(self.is_ready)
        claims = self.home / "claims.jsonl"
        before = claims.stat().st_size
        wait_until(lambda: claims.stat().st_size > before)

    def wait_until_reachable(self) -> None:
        """Wait until the API reaches its ledger."""
        wait_until(lambda: send_request(self.port, "GET", "/v1/jobs")[0] == "200")

    def _alive(self) -> set[int | None]:
        try:
            return {worker.info["pid"] for worker in self.ledger.workers.alive()}
        except LedgerUnavailable:
            return set()

    def any_worker(self, *, of: int = 1) -> BaseProcess:
        """A random live worker, as soon as there are so many."""
        live: list[BaseProcess] = []

        def has_enough() -> bool:
            alive = self._alive()
            live[:] = [process for process in self.workers if process.pid in alive and process.is_alive()]
            return len(live) >= of

        wait_until(has_enough)
        return random.choice(live)

    def kill_valkey(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """End it with a signal and start it again."""
        pid = process_id(self.valkey.url)
        if pid is not None:
            os.kill(pid, signum)
        self.restart_valkey()

    def restart_valkey(self) -> None:
        """Start it again once it has ended."""
        wait_until(lambda: not self.valkey.is_alive())
        self.valkey = valkey.start(self.home)

    def close(self) -> None:
        """End everything."""
        self._closing.set()
        self._supervisor.join()
        for process in (self.api, *self.workers):
            with suppress(ProcessLookupError):
                process.kill()
            process.join()
        self.receiver.close()
        self._losses.close()
        self.ledger.close()
        self.api_proxy.close()
        self.worker_proxy.close()
        self.valkey.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
