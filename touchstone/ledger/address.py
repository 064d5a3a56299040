"""Addresses of the ledger."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from touchstone.settings import Settings

# A unix socket's address holds 107 bytes.
_MAX_SOCKET_PATH = 99


def ledger_url(settings: Settings) -> str:
    """The address of the ledger: as set, or the socket of the Valkey below `home`."""
    return settings.redis_url or socket_url(settings.home)


def socket_url(home: Path) -> str:
    """The address of the Valkey below `home`, running or not."""
    return f"unix://{quote(str(socket_path(home)))}"


def socket_path(home: Path) -> Path:
    """The path of the socket: below `home`, or in a short folder named after it where that path would be
    too long.
    """
    path = home.absolute() / "valkey" / "valkey.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(home.absolute())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"touchstone-{os.geteuid()}-{name}" / "valkey.sock"
