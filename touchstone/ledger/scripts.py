"""The connection to Valkey or Redis and the scripts that run there."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import redis

from touchstone.ledger.connection import map_redis_errors

_LIBRARIES = ("lib/fair_queue", "lib/webhooks", "lib/prelude", "lib/losses")
"""What precedes every script, in this order."""


@cache
def script_source(name: str) -> str:
    """The text of a script, with the libraries before it."""
    folder = files(__package__) / "lua"
    return "\n".join(folder.joinpath(f"{part}.lua").read_text("utf-8") for part in (*_LIBRARIES, name))


class Scripts:
    """The ledger's scripts by name, sent by their digest."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._registered: dict[str, Any] = {}

    def run(self, name: str, *args: str | int | float) -> Any:
        """Run a script; `LedgerUnavailable` where the server does not answer in time."""
        if name not in self._registered:
            self._registered[name] = self._client.register_script(script_source(name))
        with map_redis_errors():
            return self._registered[name](args=args)
