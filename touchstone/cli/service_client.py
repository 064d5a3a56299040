"""The requests of the command line to a running service: register a model, list models."""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from touchstone.models.external_data import Joined
from touchstone.settings import Settings

TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.2

Job = dict[str, Any]
NO_FILES: Mapping[str, bytes] = MappingProxyType({})


class RefusedError(Exception):
    """The service refused a request, or is unreachable; the text says why."""


@dataclass(frozen=True)
class Upload:
    """A form with a model's file, which is read while it is sent; `length` bytes in all."""

    file: Joined
    head: bytes
    tail: bytes
    content_type: str

    @classmethod
    def of(cls, file: Joined, fields: Mapping[str, bytes], files: Mapping[str, bytes] = NO_FILES) -> Upload:
        """A form of these fields and small files, and the model's file as its last part, `file`."""
        boundary = secrets.token_hex(16)
        parts = [(_part_header(boundary, f'name="{name}"'), value) for name, value in fields.items()]
        parts += [(_file_header(boundary, name), value) for name, value in files.items()]
        return cls(
            file,
            b"".join(head + value + b"\r\n" for head, value in parts) + _file_header(boundary, "file"),
            f"\r\n--{boundary}--\r\n".encode(),
            f"multipart/form-data; boundary={boundary}",
        )

    @property
    def length(self) -> int:
        """The total number of bytes."""
        return len(self.head) + self.file.size + len(self.tail)

    def chunks(self, on_sent: Callable[[int], None]) -> Iterator[bytes]:
        """The bytes in chunks; `on_sent` is called with the size of each chunk of the file."""
        yield self.head
        for chunk in self.file.chunks():
            yield chunk
            on_sent(len(chunk))
        yield self.tail


def _file_header(boundary: str, name: str) -> bytes:
    return _part_header(boundary, f'name="{name}"; filename="{name}"')


def _part_header(boundary: str, disposition: str) -> bytes:
    return f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()


def api_key() -> str | None:
    """The API key of the settings."""
    key = Settings().api_key
    return key.get_secret_value() if key else None


@dataclass(frozen=True)
class Client:
    """A client of the service at an address. All requests raise `RefusedError`."""

    url: str
    key: str | None = field(default=None, repr=False)

    def register(self, upload: Upload, on_sent: Callable[[int], None]) -> dict[str, Any]:
        """Upload a model: returns the job that tries it, or the card of a version that exists already."""
        headers = {"Content-Type": upload.content_type, "Content-Length": str(upload.length)}
        return self._request("POST", "/v1/models", upload.chunks(on_sent), headers)

    def wait_for_job(self, job: Job, on_update: Callable[[Job], None]) -> Job:
        """Wait until a job ends, and call `on_update` at each poll. A failed job raises `RefusedError` with
        its reason.
        """
        while job["status"] in ("queued", "running"):
            on_update(job)
            time.sleep(POLL_SECONDS)
            job = self.get(job["links"]["self"])
        if job["status"] != "succeeded":
            raise RefusedError(job["error"]["detail"] if job["error"] else f"the job was {job['status']}")
        return job

    def models(self) -> list[dict[str, Any]]:
        """The cards of all models."""
        items: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = self.get(f"/v1/models{cursor}")
            items += page["items"]
            if page["cursor"] is None:
                return items
            cursor = f"?cursor={page['cursor']}"

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path."""
        return self._request("GET", path, None, {})

    def _request(
        self, method: str, path: str, body: Iterator[bytes] | None, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        with self._open_connection() as connection:
            connection.connect()
            # A service may refuse an upload and close the connection before it has read all of it.
            with suppress(ConnectionError):
                target = urlsplit(self.url).path.rstrip("/") + path
                connection.request(method, target, body, {**headers, **self._authorization()})
            response = connection.getresponse()
            content = _parse_object(response.read())
        if response.status >= 400:
            raise RefusedError(content.get("detail") or f"the service answered {response.status}")
        return content

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @contextmanager
    def _open_connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = self._build_connection()
        try:
            yield connection
        except (OSError, http.client.HTTPException) as error:
            raise RefusedError(
                f"{self.url} cannot be reached ({error or type(error).__name__}); "
                "`touchstone up` starts a service"
            ) from None
        finally:
            connection.close()

    def _build_connection(self) -> http.client.HTTPConnection:
        kinds: dict[str, type[HTTPConnection]] = {"http": HTTPConnection, "https": HTTPSConnection}
        parts = urlsplit(self.url)
        try:
            return kinds[parts.scheme](parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
        except (KeyError, ValueError, http.client.InvalidURL):
            raise RefusedError(
                f"{self.url} is no address; it should look like http://127.0.0.1:8000"
            ) from None


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
