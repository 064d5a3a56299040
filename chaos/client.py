"""Clients that keep a journal: each submits a job, retries until it is accepted, and waits for its end."""

from __future__ import annotations

import base64
import http.client
import io
import itertools
import json
import random
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from chaos.journal import ClientEvent, Journal
from touchstone.ledger.records import TERMINAL

MODEL = "fashion-mnist-cnn"
ANSWER_SECONDS = 6.0
PAUSE_SECONDS = 0.2
LATE_SECONDS = 3.0
"""A client that waited for longer would submit nothing while suspects wait for quieter times."""
RESUBMIT_SHARE, CANCEL_SHARE, WEBHOOK_SHARE = 0.2, 0.1, 0.5
"""Shares of the requests that are sent again after their acceptance, of the jobs that are canceled, and of
those with a webhook.
"""

Answer = tuple[str, dict[str, Any]]
"""The status, empty if no response came, and the body."""


class Load:
    """Clients on their own threads, which submit jobs until they are stopped."""

    def __init__(self, port: int, journal: Journal, clients: int, *, webhook: str) -> None:
        self._port, self._journal, self._webhook = port, journal, webhook
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._late: deque[tuple[str, str, str]] = deque()
        self.fault = "none"
        """The present fault: it is recorded with each request that begins."""
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Begin no further requests; returns when all jobs have ended, or after so many seconds."""
        self._stopping.set()
        self._until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            number = next(self._numbers)
            key, fault, body = f"key-{number}", self.fault, self._build_body(number)
            self._journal.write(ClientEvent("attempted", key, fault))
            if job := self._submit_until_accepted(key, fault, body):
                self._disturb(key, fault, body, job)
                self._follow(key, fault, job)
        with suppress(IndexError):
            while True:
                self._follow(*self._late.popleft())

    def _build_body(self, number: int) -> bytes:
        more = {"webhook": self._webhook} if random.random() < WEBHOOK_SHARE else {}
        return build_body(number, random.randint(3, 30), **more)

    def _is_running(self) -> bool:
        return not self._stopping.is_set() or time.monotonic() < self._until

    def _submit_until_accepted(self, key: str, fault: str, body: bytes) -> str | None:
        """Retry until there is a job: the Idempotency-Key makes that safe."""
        while self._is_running():
            status, answer = self._submit(key, body)
            job = str(answer.get("id", ""))
            self._journal.write(ClientEvent("answered", key, fault, status, job))
            if job:
                return job
            time.sleep(PAUSE_SECONDS)
        return None

    def _disturb(self, key: str, fault: str, body: bytes, job: str) -> None:
        """Submit it again, or cancel it, or neither."""
        if random.random() < RESUBMIT_SHARE:
            status, answer = self._submit(key, body)
            self._journal.write(ClientEvent("answered", key, fault, status, str(answer.get("id", ""))))
        if random.random() < CANCEL_SHARE:
            send_request(self._port, "POST", f"/v1/jobs/{job}/cancel")

    def _follow(self, key: str, fault: str, job: str) -> None:
        """Wait for its end; for one that takes long, only when no more requests are to begin."""
        late_at = time.monotonic() + LATE_SECONDS
        while self._is_running():
            if time.monotonic() > late_at and not self._stopping.is_set():
                self._late.append((key, fault, job))
                return
            status, answer = send_request(self._port, "GET", f"/v1/jobs/{job}", headers={"Prefer": "wait=2"})
            if answer.get("status") in TERMINAL and status == "200":
                self._journal.write(ClientEvent("ended", key, fault, answer["status"], job))
                return
            if status == "404":  # lost; the checker finds it
                return
            time.sleep(0 if status == "200" else PAUSE_SECONDS)

    def _submit(self, key: str, body: bytes) -> Answer:
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        return send_request(self._port, "POST", "/v1/attacks/pgd", body, headers)


def send_request(
    port: int, method: str, path: str, data: bytes = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """One request on its own connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request(method, path, data, dict(headers or {}))
        response = connection.getresponse()
        return str(response.status), json.loads(response.read() or "{}")
    except (OSError, http.client.HTTPException, ValueError):
        return "", {}
    finally:
        connection.close()


def build_body(number: int, steps: int, **more: str) -> bytes:
    """A small attack; its seed identifies the request."""
    fields = {"model": MODEL, "steps": steps, "early_stop": False, "seed": number, **more}
    return json.dumps({**fields, "image": _build_image()}).encode()


def _build_image() -> str:
    noise = np.random.default_rng().integers(0, 256, (28, 28), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
