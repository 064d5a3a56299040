"""`python -m chaos.quarantine --quarantine NAME`: a worker's process of suspects, as the campaign runs it."""

from __future__ import annotations

import sys

from chaos.processes import QUARANTINE
from touchstone.settings import Settings

if __name__ == "__main__":
    QUARANTINE.prepare(Settings())
    sys.exit(QUARANTINE.main())
