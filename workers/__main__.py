"""`python -m workers`: run jobs on one device until told to stop."""

from __future__ import annotations

import sys
from functools import partial

from touchstone import logs
from touchstone.embedded import ledger_url
from touchstone.engine import Engine, Ways
from touchstone.jobs.ledger import Ledger
from touchstone.jobs.registry import open_registry
from touchstone.outgoing import Outgoing
from touchstone.run import run
from touchstone.settings import Settings, secret
from workers.serve import serve


def main() -> int:
    """Read the settings, start the engine, and serve."""
    settings = Settings()
    logs.configure(settings.log_level)
    shelf = open_registry(settings)
    ledger = Ledger(ledger_url(settings), settings)
    ways = Ways(Outgoing(settings.outgoing_allow), ledger.spending, secret)
    engine = Engine(settings.device, settings.memory_budget, shelf, ways)
    return serve(settings, engine, partial(run, engine=engine), shelf)


if __name__ == "__main__":
    sys.exit(main())
