"""Clients that keep a book: each submits a job, insists until it is accepted, and waits for its end."""

from __future__ import annotations

import base64
import http.client
import io
import itertools
import json
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from chaos.book import Book, Entry
from touchstone.jobs.record import TERMINAL

MODEL = "fashion-mnist-cnn"
ANSWER_SECONDS = 6.0
PAUSE_SECONDS = 0.2
AGAIN, CANCELED = 0.2, 0.1
"""Shares of the requests that are sent again once they were accepted, and of the jobs that are canceled."""

Answer = tuple[str, dict[str, Any]]
"""Status, or nothing where no answer came, and the body."""


class Load:
    """Clients on threads of their own, which never stop asking until they are told to."""

    def __init__(self, port: int, book: Book, clients: int) -> None:
        self._port, self._book = port, book
        self._numbers = itertools.count(1)
        self._enough = threading.Event()
        self.fault = "none"
        """What is going on at the moment: it stands beside each request that begins."""
        self._threads = [threading.Thread(target=self._live, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Begin no further requests; returns when all were seen to end, or the time is up."""
        self._enough.set()
        self._until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join()

    def _live(self) -> None:
        while not self._enough.is_set():
            key = f"key-{next(self._numbers)}"
            fault, body = self.fault, _body(key)
            self._book.write(Entry("attempted", key, fault))
            if job := self._insist(key, fault, body):
                self._follow(key, fault, body, job)

    def _goes_on(self) -> bool:
        return not self._enough.is_set() or time.monotonic() < self._until

    def _insist(self, key: str, fault: str, body: bytes) -> str | None:
        """Ask until there is a job: what a client does who was promised that asking twice is safe."""
        while self._goes_on():
            status, answer = self._submit(key, body)
            job = str(answer.get("id", ""))
            self._book.write(Entry("answered", key, fault, status, job))
            if job:
                return job
            time.sleep(PAUSE_SECONDS)
        return None

    def _follow(self, key: str, fault: str, body: bytes, job: str) -> None:
        if random.random() < AGAIN:
            status, answer = self._submit(key, body)
            self._book.write(Entry("answered", key, fault, status, str(answer.get("id", ""))))
        if random.random() < CANCELED:
            self._ask("POST", f"/v1/jobs/{job}/cancel")
        while self._goes_on():
            status, answer = self._ask("GET", f"/v1/jobs/{job}", headers={"Prefer": "wait=2"})
            if answer.get("status") in TERMINAL and status == "200":
                self._book.write(Entry("ended", key, fault, answer["status"], job))
                return
            if status == "404":  # the checker will find that it is lost
                return
            time.sleep(0 if status == "200" else PAUSE_SECONDS)

    def _submit(self, key: str, body: bytes) -> Answer:
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        return self._ask("POST", "/v1/attacks/pgd", body, headers)

    def _ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        return ask(self._port, method, path, body, headers)


def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return str(response.status), json.loads(response.read() or "{}")
    except (OSError, http.client.HTTPException, ValueError):
        return "", {}
    finally:
        connection.close()


def _body(key: str) -> bytes:
    """A small attack whose seed tells which request it was."""
    fields = {"model": MODEL, "steps": random.randint(3, 30), "early_stop": False}
    return json.dumps({**fields, "seed": int(key.removeprefix("key-")), "image": _image()}).encode()


def _image() -> str:
    noise = np.random.default_rng().integers(0, 256, (28, 28), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
