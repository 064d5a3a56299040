"""What the supervisor needs of a Valkey server: whether it answers, and its process id."""

from __future__ import annotations

from typing import Any

import redis

from touchstone.ledger.connection import connect


def process_id(url: str) -> int | None:
    """The process id of the server that answers at `url` and is ready for work; None where none does."""
    client = connect(url)
    try:
        info: Any = client.info("server")
        client.ping()  # refused while the server still loads its file
        return int(info["process_id"])
    except redis.RedisError:
        return None
    finally:
        client.close()
