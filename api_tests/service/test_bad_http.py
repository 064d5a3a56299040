"""Bytes that are no proper HTTP, or too much of it, over a plain socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from api_tests.service.test_bad_input import BOUNDARY, IMAGE, MODEL, form, post
from api_tests.support.fake_service import Api, assert_problem, run_service
from api_tests.support.wait import TIMEOUT_SECONDS
from service import app
from service.http.body_limits import BodyLimits
from touchstone.settings import Settings

WHOLE, TYPE = form(IMAGE, MODEL)
HEAD = (
    f"POST /v1/attacks/pgd HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE['Content-Type']}\r\n".encode()
)
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


def exchange(api: Api, sent: bytes, *, seconds: float = TIMEOUT_SECONDS) -> bytes:
    """What comes back for raw bytes until the service closes the connection or falls silent."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=seconds) as line:
        received = b""
        try:
            line.sendall(sent)
            while piece := line.recv(65536):
                received += piece
        except (ConnectionError, TimeoutError):
            pass
        return received


def assert_refused(answer: bytes, status: int, code: str) -> None:
    """Whether this is one answer, the problem that was expected, after which the connection ended."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"connection: close" in head.lower()
    said = json.loads(body)
    assert (said["status"], said["code"]) == (status, code)
    assert said["detail"]


INVALID = {
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "a length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks of no size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nnot-a-size\r\n",
    "another coding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "a name of nothing": HEAD + b"\0: y\r\n\r\n",
    "a space before the colon": b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "lines that end in LF alone": b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    "one line that ends in LF alone": b"GET /healthz HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
    "an empty line of LF alone": GET + b"X: y\r\n\n",
    "an LF before the request": b"\n" + GET + b"\r\n",
    "a header that goes on in the next line": GET + b"X: y\r\n z\r\n\r\n",
    "a length in the next line": HEAD + b"Content-Length:\r\n\t5\r\n\r\nabcde",
    "a first header that is folded": b"GET /healthz HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "a CR alone": GET + b"X: y\rZ: z\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n",
}


@pytest.mark.parametrize("sent", INVALID.values(), ids=INVALID)
def test_malformed_http_is_400(api: Api, sent: bytes) -> None:
    assert_refused(exchange(api, sent), 400, "invalid_http")


def test_trailer_with_lf_alone_ends_the_connection(api: Api) -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(WHOLE) + WHOLE + b"\r\n"
    answer = exchange(api, chunked + b"0\r\nX: y\n\r\n" + GET + b"\r\n")
    assert b"alive" not in answer


LARGE = {
    "a header of 64 KiB": GET + b"X: " + b"y" * 65536 + b"\r\n\r\n",
    "a header of a megabyte": GET + b"X: " + b"y" * 10**6 + b"\r\n\r\n",
    "a head without end": GET + b"X: " + b"y" * 200_000,
    "20,000 headers": GET + b"".join(b"X-%d: y\r\n" % i for i in range(20_000)) + b"\r\n",
    "a path of 70 kB": b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("sent", LARGE.values(), ids=LARGE)
def test_oversized_request_head_is_431(api: Api, sent: bytes) -> None:
    assert_refused(exchange(api, sent), 431, "head_too_large")


def test_request_head_below_the_limit_is_accepted(api: Api) -> None:
    sent = GET + b"Connection: close\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(4000)) + b"\r\n"
    assert exchange(api, sent).startswith(b"HTTP/1.1 200 ")


def test_body_with_declared_length_over_the_limit_is_413(api: Api) -> None:
    sent = HEAD + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
    assert_refused(exchange(api, sent), 413, "body_too_large")


def test_body_over_the_limit_that_is_sent_completely_is_413(api: Api) -> None:
    assert_problem(post(api, bytes(20 * 2**20), TYPE), 413, "body_too_large")


def test_chunked_body_over_the_limit_is_413(api: Api) -> None:
    start = form((IMAGE[0], b""), end=False)[0].removesuffix(b"\r\n")
    response = api.client.post("/v1/attacks/pgd", content=iter([start, *[bytes(2**20)] * 20]), headers=TYPE)
    assert_problem(response, 413, "body_too_large")


def test_content_length_shorter_than_the_body_is_400(api: Api) -> None:
    sent = HEAD + b"Connection: close\r\nContent-Length: 100\r\n\r\n" + WHOLE
    assert_refused(exchange(api, sent), 400, "invalid_body")


@pytest.fixture
def short_timeout_api(valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A service that waits 0.3 seconds for a body."""
    monkeypatch.setattr(app, "BodyLimits", partial(BodyLimits, max_wait=0.3))
    with run_service(Settings(home=tmp_path, redis_url=valkey)) as api:
        yield api


def test_body_that_never_ends_is_408(short_timeout_api: Api) -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    for sent in (
        HEAD + b"Content-Length: %d\r\n\r\n" % (len(WHOLE) + 100) + WHOLE,
        chunked + b"%x\r\n" % len(WHOLE) + WHOLE + b"\r\n",
        chunked + b"ffffffffffffffff\r\nabc",
        chunked + b"5;" + b"x" * 10_000,
        chunked,
    ):
        assert_refused(exchange(short_timeout_api, sent), 408, "body_too_slow")


def test_oversized_part_headers_are_400(api: Api) -> None:
    for head in (b"X: y\r\n" * 9, b"X: " + b"y" * 5000 + b"\r\n", b"X" * 5000 + b": y\r\n"):
        body = f"--{BOUNDARY}\r\n".encode() + head + b"\r\n\r\n" + WHOLE
        said = assert_problem(post(api, body, TYPE), 400, "invalid_body")
        assert "header" in said["detail"]


def test_form_with_too_many_parts_is_400(api: Api) -> None:
    said = assert_problem(post(api, *form(*[('name="x"', b"")] * 1001)), 400, "invalid_body")
    assert "more than 64 parts" in said["detail"]


def test_service_still_works_after_bad_http(api: Api) -> None:
    assert api.run_job()["status"] == "succeeded"
