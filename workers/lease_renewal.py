"""A process that renews a worker's leases while the worker's own threads cannot.

Code that holds the interpreter lock for seconds stops the lease keeper, too; its jobs would be taken from a
worker that lives. How long that may last is the budget of one step of the engine.
"""

from __future__ import annotations

import json
import multiprocessing
import select
import signal
import socket
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress

from touchstone.errors import LedgerUnavailable
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.settings import Settings

SILENT_SECONDS = 1.0
"""After so long without news the worker's threads do not run."""
RENEW_SECONDS = 0.4
MAX_NEWS = 2**20


class LeaseRenewal:
    """Forks the process, so create it before any thread; it ends when this one does, however that dies."""

    def __init__(self, settings: Settings) -> None:
        self._news, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = multiprocessing.get_context("fork").Process(
                target=_renew, args=(theirs, self._news, settings), name="lease-renewal", daemon=True
            )
            # Python warns of forks beside threads; the only other one here waits for its input.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process.start()
        self._news.setblocking(False)

    def update(self, worker: str, claims: Mapping[str, int]) -> None:
        """Say that the threads run, and which jobs they hold; never blocks."""
        with suppress(OSError):
            self._news.send(json.dumps([worker, claims]).encode())

    def close(self) -> None:
        """End the process."""
        self._news.close()
        self._process.join()


def _renew(news: socket.socket, senders: socket.socket, settings: Settings) -> None:
    senders.close()  # or the end of the worker would not be noticed
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    ledger = Ledger(ledger_url(settings), settings)
    worker, claims, heard_at = "", {}, time.monotonic()
    while True:
        if select.select([news], [], [], RENEW_SECONDS)[0]:
            if not (message := news.recv(MAX_NEWS)):
                return
            (worker, claims), heard_at = json.loads(message), time.monotonic()
        elif claims and SILENT_SECONDS < time.monotonic() - heard_at < settings.hang:
            with suppress(LedgerUnavailable):
                ledger.renew(worker, claims)
