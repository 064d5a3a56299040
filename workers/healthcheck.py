"""`python -m workers.healthcheck`: whether a worker of this host has sent a heartbeat lately."""

from __future__ import annotations

import socket
import sys

from touchstone.errors import LedgerUnavailable
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.settings import Settings


def main() -> int:
    """The exit code: 0 if it is alive."""
    settings = Settings()
    try:
        workers = Ledger(ledger_url(settings), settings).workers.alive()
    except LedgerUnavailable:
        return 1
    return 0 if any(worker.info.get("host") == socket.gethostname() for worker in workers) else 1


if __name__ == "__main__":
    sys.exit(main())
