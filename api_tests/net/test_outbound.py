"""Outbound requests: connections go only to checked addresses, and responses are limited in size and time."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_tests.support import remote_models
from api_tests.support.dns import PUBLIC_ADDRESS, fake_resolver
from api_tests.support.ports import reserve_port
from api_tests.support.remote_models import FakeRemoteModel, reply_with
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from touchstone.errors import AddressRefused, Failure, RemoteAnswer, RemoteUnavailable
from touchstone.net.outbound import OutboundClient, _is_stale, resolve


@pytest.fixture
def model() -> Iterator[FakeRemoteModel]:
    with remote_models.serve_model() as model:
        yield model


def post(
    out: OutboundClient, url: str, *, seconds: float = 5, max_bytes: int = 10_000, **headers: str
) -> Any:
    channel = out.channel(url)
    try:
        return channel.post(b'{"instances": [[1]]}', headers, seconds=seconds, max_bytes=max_bytes)
    finally:
        channel.close()


@pytest.fixture(autouse=True)
def _echo_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeRemoteModel, "logits", lambda _self, x: x)


def test_name_that_turns_private_after_the_check_is_refused(model: FakeRemoteModel) -> None:
    """Rebinding: the check sees a public address, the connection would see a private one."""
    out = OutboundClient(resolver=fake_resolver(PUBLIC_ADDRESS, "127.0.0.1"))
    url = f"https://a.example:{model.port}/"
    out.check(url)
    with pytest.raises(AddressRefused):
        post(out, url)
    assert model.requests == 0


def test_connection_resolves_once_and_goes_to_that_address(model: FakeRemoteModel, monkeypatch: Any) -> None:
    resolved = []

    def find(host: str, port: int) -> Any:
        resolved.append(host)
        return resolve("127.0.0.1", port)

    def never(*args: Any, **_: Any) -> Any:
        raise AssertionError(args)

    out = OutboundClient("a.example", resolver=find)
    monkeypatch.setattr(socket, "create_connection", never)
    monkeypatch.setattr(socket, "gethostbyname", never)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert post(out, f"http://a.example:{model.port}/x").status == 200
    assert resolved == ["a.example"]
    assert model.headers[0]["Host"] == f"a.example:{model.port}"
    assert model.headers[0]["Accept-Encoding"] == "identity"


def test_connections_are_reused_and_reopened_when_the_server_closes_them(model: FakeRemoteModel) -> None:
    channel = OutboundClient("127.0.0.1").channel(model.url)

    def ask() -> None:
        assert (
            channel.post(b'{"instances": [[1]]}', {}, seconds=TIMEOUT_SECONDS, max_bytes=1000).status == 200
        )

    for _ in range(3):
        ask()
    assert len(model.connections) == 1
    model.next_actions = [reply_with(200, b"", Connection="close")]
    ask()
    ask()
    assert len(model.connections) == 2

    def close_without_header(handler: remote_models.RemoteModelHandler) -> None:
        handler.reply(200, b"")
        handler.close_connection = True

    model.next_actions = [close_without_header]
    ask()
    kept = channel._socket
    assert kept
    wait_until(lambda: _is_stale(kept))
    ask()
    assert len(model.connections) == 3
    channel.close()
    assert model.requests == 7


def test_redirects_are_returned_and_not_followed(model: FakeRemoteModel) -> None:
    model.action = reply_with(302, Location="http://127.0.0.1:1/")
    assert post(OutboundClient("127.0.0.1"), model.url).status == 302
    assert model.requests == 1


def test_response_over_the_size_limit_is_refused(model: FakeRemoteModel) -> None:
    model.action = reply_with(200, b"x" * 1001)
    assert len(post(OutboundClient("127.0.0.1"), model.url, max_bytes=1001).body) == 1001
    with pytest.raises(RemoteAnswer, match="more than 1,000 bytes"):
        post(OutboundClient("127.0.0.1"), model.url, max_bytes=1000)


def test_endless_response_is_cut_off_at_the_size_limit(model: FakeRemoteModel) -> None:
    def forever(handler: remote_models.RemoteModelHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"400\r\n" + b"x" * 1024 + b"\r\n")

    model.action = forever
    with pytest.raises(RemoteAnswer, match="more than"):
        post(OutboundClient("127.0.0.1"), model.url, max_bytes=100_000)


def test_compressed_response_is_refused(model: FakeRemoteModel) -> None:
    model.action = reply_with(200, b"\x1f\x8b", Content_Encoding="gzip")
    with pytest.raises(RemoteAnswer, match="compressed"):
        post(OutboundClient("127.0.0.1"), model.url)


@pytest.mark.parametrize("act", [remote_models.hang, remote_models.send_slowly])
def test_slow_response_times_out(model: FakeRemoteModel, act: remote_models.Action) -> None:
    model.action = act
    began = time.monotonic()
    with pytest.raises(RemoteUnavailable, match="did not answer within") as caught:
        post(OutboundClient("127.0.0.1"), model.url, seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 20
    assert caught.value.extra == {"timed_out": True}


def test_abort_from_another_thread_ends_the_request(model: FakeRemoteModel) -> None:
    model.action = remote_models.hang
    channel = OutboundClient("127.0.0.1").channel(model.url)
    threading.Timer(0.1, channel.abort).start()
    began = time.monotonic()
    with pytest.raises(RemoteUnavailable):
        channel.post(b'{"instances": [[1]]}', {}, seconds=TIMEOUT_SECONDS, max_bytes=10)
    assert time.monotonic() - began < 20


def test_broken_response_raises_remote_unavailable(model: FakeRemoteModel) -> None:
    for act in (remote_models.close_silently, lambda handler: handler.wfile.write(b"what?\r\n\r\n")):
        model.action = act
        with pytest.raises(RemoteUnavailable, match=r"cannot be reached|did not answer"):
            post(OutboundClient("127.0.0.1"), model.url, seconds=0.5)

    def cut_short(handler: remote_models.RemoteModelHandler) -> None:
        handler.send(200, b"x", Content_Length="100")
        handler.close_connection = True

    model.action = cut_short
    with pytest.raises(RemoteUnavailable, match="IncompleteRead"):
        post(OutboundClient("127.0.0.1"), model.url)


def test_closed_port_raises_remote_unavailable() -> None:
    with reserve_port() as port, pytest.raises(RemoteUnavailable, match="refused"):
        post(OutboundClient("127.0.0.1"), f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(("text", "seconds"), [("7", 7), ("-1", None), ("soon", None), ("0", 0)])
def test_retry_after_is_read_in_seconds(model: FakeRemoteModel, text: str, seconds: float | None) -> None:
    model.action = reply_with(429, Retry_After=text)
    assert post(OutboundClient("127.0.0.1"), model.url).retry_after == seconds


def test_retry_after_is_read_as_a_date(model: FakeRemoteModel) -> None:
    model.action = reply_with(429, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT")
    assert post(OutboundClient("127.0.0.1"), model.url).retry_after == 0


def test_log_contains_no_request_header_or_path(
    model: FakeRemoteModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        post(OutboundClient("127.0.0.1"), model.url + "/?key=swordfish", Authorization="Bearer swordfish")
    assert model.headers[0]["Authorization"] == "Bearer swordfish"
    assert "swordfish" not in caplog.text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/CN=a.example", "-addext", "subjectAltName=DNS:a.example"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            *key,
            *subject,
            "-keyout",
            folder / "key.pem",
            "-out",
            folder / "cert.pem",
        ],
        check=True,
        capture_output=True,
    )
    return folder


def test_tls_connects_to_the_checked_address_and_verifies_the_name(certificate: Path) -> None:
    names: list[Any] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    with remote_models.serve_model(server) as model:
        trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        find = fake_resolver("127.0.0.1")
        out = OutboundClient("127.0.0.1", resolver=find, tls=trusting)
        assert post(out, f"https://a.example:{model.port}/").status == 200
        assert (names, model.headers[0]["Host"]) == (["a.example"], f"a.example:{model.port}")
        for url, tls in (
            (f"https://b.example:{model.port}/", trusting),
            (f"https://a.example:{model.port}/", None),
        ):
            with pytest.raises(RemoteUnavailable, match="no trusted certificate"):
                post(OutboundClient("127.0.0.1", resolver=find, tls=tls), url)
    assert model.requests == 1


def test_outbound_failures_have_their_codes() -> None:
    codes = {kind.code for kind in (AddressRefused, RemoteAnswer, RemoteUnavailable)}
    assert codes == {"address_refused", "remote_answer", "remote_unavailable"}
    assert all(issubclass(kind, Failure) for kind in (AddressRefused, RemoteAnswer, RemoteUnavailable))


def test_response_body_is_not_read_without_a_size_limit(model: FakeRemoteModel) -> None:
    answers = [
        reply_with(202, b"x" * 10_000_000),
        reply_with(204, b"", Content_Encoding="gzip"),
        reply_with(429, b"", Retry_After="7"),
        reply_with(302, b"", Location="http://127.0.0.1:1/"),
    ]
    model.next_actions = [*answers]
    channel = OutboundClient("127.0.0.1").channel(model.url)
    body = b'{"instances": [[[[0.0]]]]}'
    replies = [channel.post(body, {}, seconds=5, max_bytes=None) for _ in answers]
    assert [reply.status for reply in replies] == [202, 204, 429, 302]
    assert [(reply.body, reply.retry_after) for reply in replies][1:3] == [(b"", None), (b"", 7.0)]
    assert len(model.connections) == len(answers)
