"""`python -m service`: the API as a process."""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from service.app import create_app
from service.http.server import Server, open_listeners
from touchstone import logs
from touchstone.errors import LedgerUnavailable, StartError
from touchstone.ledger.api_keys import check_address
from touchstone.ledger.ledger import Ledger
from touchstone.logs import get_logger
from touchstone.settings import settings
from touchstone.storage.schema import check_schemas


def main(arguments: Sequence[str] = ()) -> int:
    """Serve until stopped; returns 1 where anybody could call it, or where its data would be lost."""
    parser = argparse.ArgumentParser("python -m service", description="Serve the API.")
    parser.add_argument(
        "--private-socket",
        type=Path,
        help="share the port with other processes, and also listen on this Unix socket alone",
    )
    private_socket: Path | None = parser.parse_args(arguments).private_socket
    chosen = settings()
    logs.configure(chosen.log_level)
    _raise_file_limit()
    app = create_app(chosen)
    ledger: Ledger = app.state.backend.ledger
    try:
        check_schemas(ledger, app.state.backend.blobs)
        check_address(chosen, ledger.keys)
    except (StartError, LedgerUnavailable) as error:
        get_logger("service").error("not started", reason=str(error))
        return 1
    Server(app, chosen).run(open_listeners(chosen, private_socket) if private_socket else None)
    return 0


def _raise_file_limit() -> None:
    """Raise the limit of open files, of which each connection is one, to what the system permits."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
