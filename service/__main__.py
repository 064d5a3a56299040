"""`python -m service`: the API as a process."""

from __future__ import annotations

from service.app import create_app
from service.server import Server
from touchstone import logs
from touchstone.settings import settings


def main() -> None:
    """Serve until told to stop."""
    chosen = settings()
    logs.configure(chosen.log_level)
    Server(create_app(chosen), chosen).run()


if __name__ == "__main__":
    main()
