"""`python -m touchstone.supervisor.child MODULE`: run a module that ends when its parent process is gone.

The parent holds the other end of standard input. However it dies, the pipe closes, and no orphan keeps a port
or a device.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE_SECONDS = 15.0


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
