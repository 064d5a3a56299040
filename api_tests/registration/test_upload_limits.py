"""Files of models on their way in: limits, memory, and what a form leaves that breaks off."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from obstore.store import MemoryStore

from api_tests.support.fake_service import (
    Api,
    assert_problem,
    run_service,
)
from api_tests.support.model_registration import ONNX, send_registration
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from service.http.body_limits import BodyLimitMiddleware, BodyLimits, BodyMemory
from service.submissions import file_uploads
from touchstone.settings import Settings
from touchstone.storage.blobs import FolderBlobs, ObjectStoreBlobs, digest_of

BOUNDARY = b"frontier"
MIB = 2**20


@pytest.fixture(scope="module")
def small_limits_api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service that takes models of up to two MiB, and images of up to ten thousand bytes."""
    home = tmp_path_factory.mktemp("small")
    with run_service(
        Settings(home=home, redis_url=valkey_server, model_limit=2 * MIB, upload_limit=10_000)
    ) as api:
        yield api


def wait_until_no_uploads(api: Api) -> None:
    """Wait until no file is on its way in."""
    incoming = api.settings.home / "blobs" / "incoming"
    wait_until(lambda: not any(incoming.iterdir()))


def test_model_file_over_the_limit_is_413(small_limits_api: Api) -> None:
    body = assert_problem(
        send_registration(small_limits_api, "net-large", ONNX + bytes(2 * MIB)),
        413,
        "model_too_large",
        "file",
    )
    assert f"{2 * MIB:,}" in body["detail"]
    assert_problem(
        send_registration(small_limits_api, "net-huge", bytes(2 * MIB + file_uploads.ENVELOPE)),
        413,
        "body_too_large",
    )
    wait_until_no_uploads(small_limits_api)


def test_other_routes_keep_their_own_body_limit(small_limits_api: Api) -> None:
    for path in ("/v1/attacks/pgd", "/v1/predictions", "/v1/jobs/cancel"):
        response = small_limits_api.client.post(
            path, content=bytes(MIB), headers={"Content-Type": "application/json"}
        )
        assert_problem(response, 413, "body_too_large")
    assert (
        send_registration(
            small_limits_api, "net-larger", ONNX, provenance="x" * 4000, licence="y" * 2000
        ).status_code
        == 200
    )


def announce_upload(api: Api, length: int, *more: bytes) -> socket.socket:
    """A connection on which a registration was announced."""
    line = socket.create_connection(("127.0.0.1", api.port), timeout=TIMEOUT_SECONDS)
    lines = [
        b"POST /v1/models HTTP/1.1",
        b"Host: localhost",
        b"Content-Type: multipart/form-data; boundary=" + BOUNDARY,
        b"Content-Length: %d" % length,
        *more,
    ]
    line.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
    return line


OPENING = b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def test_too_large_model_is_refused_before_it_is_sent(api: Api) -> None:
    with announce_upload(api, 600 * MIB, b"Expect: 100-continue") as line:
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer
    wait_until_no_uploads(api)


def test_aborted_upload_leaves_no_file(api: Api) -> None:
    blobs = set((api.settings.home / "blobs").rglob("*"))
    with announce_upload(api, 5 * MIB) as line:
        line.sendall(OPENING + bytes(3 * MIB))
        time.sleep(0.1)
    wait_until_no_uploads(api)
    new = set((api.settings.home / "blobs").rglob("*")) - blobs
    assert not [path for path in new if "aside" not in path.parts], "what the sweeper put aside is older"


def test_incomplete_registration_form_is_400(api: Api) -> None:
    body = OPENING + ONNX
    headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
    assert_problem(api.client.post("/v1/models", content=body, headers=headers), 400, "invalid_body")
    assert_problem(api.client.post("/v1/models", content=b"nothing", headers=headers), 400, "invalid_body")
    no_boundary = {"Content-Type": "multipart/form-data"}
    assert_problem(api.client.post("/v1/models", content=body, headers=no_boundary), 400, "invalid_body")


def test_uploaded_file_is_streamed_to_disk_with_little_memory(tmp_path: Path) -> None:
    blobs, count, piece = FolderBlobs(tmp_path), 512, bytes(64 * 2**10)
    pieces = iter([OPENING, *[piece] * count, b"\r\n--" + BOUNDARY + b"--\r\n"])
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(piece)

    async def receive() -> dict[str, Any]:
        body = next(pieces)
        return {"type": "http.request", "body": body, "more_body": not body.endswith(b"--\r\n")}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with file_uploads.receive_form(
            Request(scope, receive, send), blobs, {"file": 2**30}, total=2**30
        ) as taken:
            assert taken.files["file"].digest == f"sha256:{digest.hexdigest()}"
            blobs.put_file(taken.files["file"].path, taken.files["file"].digest)
        assert blobs.size(taken.files["file"].digest) == count * len(piece)

    content_type = (b"content-type", b"multipart/form-data; boundary=" + BOUNDARY)
    tracemalloc.start()
    asyncio.run(
        BodyLimitMiddleware(app, BodyLimits(1000), BodyMemory(10**9))(
            {"type": "http", "headers": [content_type]}, receive, None
        )
    )  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MIB < count * len(piece)
    assert list((tmp_path / "incoming").iterdir()) == []


def test_large_file_is_stored_in_object_storage(tmp_path: Path) -> None:
    blobs = ObjectStoreBlobs(MemoryStore(), tmp_path)
    data = bytes(range(256)) * 40_000
    file = tmp_path / "a"
    file.write_bytes(data)
    blobs.put_file(file, digest_of(data))
    assert blobs.get(digest_of(data)) == data
