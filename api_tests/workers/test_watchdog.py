"""A process whose threads no longer run is ended by a timer outside of the interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, time
from workers import watchdog
watchdog.GRACE_SECONDS, watchdog.FEED_SECONDS = 0.5, 0.1
dog = watchdog.Watchdog(hang=1.5)
begun = time.monotonic()
while time.monotonic() - begun < {fed}:
    dog.feed()
    time.sleep(0.05)
print("fed", flush=True)
ctypes.{library}(None).sleep({still})
"""


def run(**how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(**how)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("library", ["PyDLL", "CDLL"])  # the first holds the interpreter lock
def test_watchdog_ends_a_stalled_process_with_a_traceback(library: str) -> None:
    done = run(fed=0.2, library=library, still=600)
    assert (done.returncode, done.stdout) == (1, "fed\n")
    assert 'File "<string>"' in done.stderr


def test_watchdog_leaves_a_process_that_feeds_it_alone() -> None:
    done = run(fed=3, library="CDLL", still=0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fed\n", "")
