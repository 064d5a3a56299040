"""How much of a processor a child process uses."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

_USER_TIME = 11
"""The field of /proc/PID/stat after the program's name, followed by the time in the kernel; both in ticks."""


class _Process(Protocol):
    @property
    def pid(self) -> int: ...


class WorkMeter:
    """Measures how much of one processor all threads of a process together have used since the last time."""

    def __init__(self, process: _Process) -> None:
        self._process = process
        self._before = self._read()

    def take_share(self) -> float:
        """The share since the last call: 1 is one processor. 0 where another process has taken its place."""
        (pid, at, used), self._before = self._before, self._read()
        new_pid, now, new_used = self._before
        return max(0.0, new_used - used) / (now - at) if new_pid == pid and now > at else 0.0

    def _read(self) -> tuple[int, float, float]:
        """Process id, time, and seconds of the processor so far."""
        pid = self._process.pid
        return pid, time.monotonic(), read_cpu_seconds(pid)


def read_cpu_seconds(pid: int) -> float:
    """The seconds of the processor that a process has used; 0 where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
        return sum(map(int, fields[_USER_TIME : _USER_TIME + 2])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0
