"""`python -m service`: the API as a process."""

from __future__ import annotations

import resource

from service.app import create_app
from service.server import Server
from touchstone import logs
from touchstone.settings import settings


def main() -> None:
    """Serve until told to stop."""
    chosen = settings()
    logs.configure(chosen.log_level)
    _take_all_files()
    Server(create_app(chosen), chosen).run()


def _take_all_files() -> None:
    """Each connection is a file, and shells grant few of those that the system would."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()
