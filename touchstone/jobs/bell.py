"""The bell that tells workers of a job: names that service and workers share, and the broker's address."""

from __future__ import annotations

TASK = "touchstone.run"
QUEUE = "touchstone"


def broker_url(url: str) -> str:
    """The ledger's address in the spelling of Celery's transport, which calls unix sockets `redis+socket`."""
    return url.replace("unix://", "redis+socket://", 1) if url.startswith("unix://") else url
