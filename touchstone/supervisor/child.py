"""`python -m touchstone.supervisor.child MODULE`: run a module that ends when its parent process is gone;
`start_child` starts one, and `stop_child` ends it.

The parent holds the other end of standard input. However it dies, the pipe closes, and no orphan keeps a port
or a device.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

GRACE_SECONDS = 15.0


def start_child(
    arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Run a module with its arguments in a session of its own, so that Ctrl-C reaches only this process; its
    output goes to where that of this process does, or to a file.
    """
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-m", __spec__.name, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def stop_child(process: subprocess.Popen[bytes], *, timeout: float) -> None:
    """Ask it to end, and end it by force if that takes longer than so many seconds."""
    process.terminate()
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    close_input(process)


def close_input(process: subprocess.Popen[bytes]) -> None:
    """Close this end of the standard input of a process that has ended."""
    if process.stdin is not None:
        process.stdin.close()


def main() -> None:
    """Watch standard input on a thread, and run the module named on the command line."""
    module = sys.argv[1]
    sys.argv = [module, *sys.argv[2:]]
    threading.Thread(target=_watch_stdin, name="lifeline", daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _watch_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
