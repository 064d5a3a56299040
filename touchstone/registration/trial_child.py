"""A child process that waits for a model to try, the only one: it may be started before there is one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO

from touchstone.sandbox import confinement

MODULE = "touchstone.registration.trial_process"
STDERR_TAIL_BYTES = 2000


class TrialChild:
    """The process. What it is to try goes through a socket, as an open file; while it waits for that, it ends
    as soon as this process does.
    """

    def __init__(self) -> None:
        self.errors = ""  # the last of what it wrote to standard error, once it is closed
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._input, remote_end = socket.socketpair()
        try:
            with remote_end:
                # -P: nothing is imported from its working directory.
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [sys.executable, "-P", "-m", MODULE],
                    stdin=remote_end.fileno(),
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    env=_environment(),
                    cwd="/",
                    start_new_session=True,
                )
        except BaseException:
            self._errors.close()
            self._input.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether it has ended, whatever the reason."""
        return self._process.poll() is not None

    @property
    def returncode(self) -> int:
        """How it ended, once it is closed: as `subprocess.Popen.returncode`."""
        return self._process.returncode

    @property
    def output(self) -> IO[bytes]:
        """The lines that it writes."""
        assert self._process.stdout is not None  # noqa: S101 - stdout=PIPE
        return self._process.stdout

    def send(self, source: IO[bytes]) -> None:
        """Have it read this file from the file's position on; one that has ended already reads nothing."""
        with suppress(OSError):
            socket.send_fds(self._input, [b"\0"], [source.fileno()])

    def kill(self) -> None:
        """Kill it with all its descendants, unless its end was noticed."""
        if self._process.returncode is not None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill it, and wait for its end."""
        self.kill()
        self._process.wait()
        self.output.close()
        self._input.close()
        with self._errors:
            self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - STDERR_TAIL_BYTES))
            self.errors = self._errors.read().decode("utf-8", errors="replace")


def _environment() -> dict[str, str]:
    """The environment of the child; half of the processors are left to the jobs."""
    return confinement.environment() | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
