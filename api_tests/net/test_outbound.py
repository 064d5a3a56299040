"""A connection goes to the address that was checked, and what comes back is bounded in size and time."""

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
from api_tests.support.dns import PUBLIC, finding
from api_tests.support.ports import reserved
from api_tests.support.remote_models import Model, saying
from api_tests.support.wait import SECONDS, wait_until
from touchstone.errors import AddressRefused, Failure, RemoteAnswer, RemoteUnavailable
from touchstone.net.outbound import Outgoing, _is_stale, resolve


@pytest.fixture
def model() -> Iterator[Model]:
    with remote_models.serving() as model:
        yield model


def post(out: Outgoing, url: str, *, seconds: float = 5, most: int = 10_000, **headers: str) -> Any:
    channel = out.channel(url)
    try:
        return channel.post(b'{"instances": [[1]]}', headers, seconds=seconds, most=most)
    finally:
        channel.close()


@pytest.fixture(autouse=True)
def _any_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "logits", lambda _self, x: x)


def test_a_name_that_turns_private_after_the_check_is_refused(model: Model) -> None:
    """Rebinding: the check sees a public address, the connection would see a private one."""
    out = Outgoing(find=finding(PUBLIC, "127.0.0.1"))
    url = f"https://a.example:{model.port}/"
    out.check(url)
    with pytest.raises(AddressRefused):
        post(out, url)
    assert model.requests == 0


def test_each_connection_resolves_once_and_goes_to_that_address(model: Model, monkeypatch: Any) -> None:
    asked = []

    def find(host: str, port: int) -> Any:
        asked.append(host)
        return resolve("127.0.0.1", port)

    def never(*args: Any, **_: Any) -> Any:
        raise AssertionError(args)

    out = Outgoing("a.example", find=find)
    monkeypatch.setattr(socket, "create_connection", never)
    monkeypatch.setattr(socket, "gethostbyname", never)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert post(out, f"http://a.example:{model.port}/x").status == 200
    assert asked == ["a.example"]
    assert model.headers[0]["Host"] == f"a.example:{model.port}"
    assert model.headers[0]["Accept-Encoding"] == "identity"


def test_connections_are_kept_and_opened_anew_when_the_other_side_closed_them(model: Model) -> None:
    channel = Outgoing("127.0.0.1").channel(model.url)

    def ask() -> None:
        assert channel.post(b'{"instances": [[1]]}', {}, seconds=SECONDS, most=1000).status == 200

    for _ in range(3):
        ask()
    assert len(model.connections) == 1
    model.plan = [saying(200, b"", Connection="close")]
    ask()
    ask()
    assert len(model.connections) == 2

    def close_without_a_word(handler: remote_models.Handler) -> None:
        handler.reply(200, b"")
        handler.close_connection = True

    model.plan = [close_without_a_word]
    ask()
    kept = channel._socket
    assert kept
    wait_until(lambda: _is_stale(kept))
    ask()
    assert len(model.connections) == 3
    channel.close()
    assert model.requests == 7


def test_redirects_are_answers(model: Model) -> None:
    model.act = saying(302, Location="http://127.0.0.1:1/")
    assert post(Outgoing("127.0.0.1"), model.url).status == 302
    assert model.requests == 1


def test_an_answer_has_a_size(model: Model) -> None:
    model.act = saying(200, b"x" * 1001)
    assert len(post(Outgoing("127.0.0.1"), model.url, most=1001).body) == 1001
    with pytest.raises(RemoteAnswer, match="more than 1,000 bytes"):
        post(Outgoing("127.0.0.1"), model.url, most=1000)


def test_an_endless_answer_has_one_too(model: Model) -> None:
    def forever(handler: remote_models.Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"400\r\n" + b"x" * 1024 + b"\r\n")

    model.act = forever
    with pytest.raises(RemoteAnswer, match="more than"):
        post(Outgoing("127.0.0.1"), model.url, most=100_000)


def test_compressed_answers_are_not_taken(model: Model) -> None:
    model.act = saying(200, b"\x1f\x8b", Content_Encoding="gzip")
    with pytest.raises(RemoteAnswer, match="compressed"):
        post(Outgoing("127.0.0.1"), model.url)


@pytest.mark.parametrize("act", [remote_models.hang, remote_models.drip])
def test_slow_answers_end_in_time(model: Model, act: remote_models.Act) -> None:
    model.act = act
    began = time.monotonic()
    with pytest.raises(RemoteUnavailable, match="did not answer within") as caught:
        post(Outgoing("127.0.0.1"), model.url, seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 20
    assert caught.value.extra == {"timed_out": True}


def test_an_abort_from_another_thread_ends_the_wait(model: Model) -> None:
    model.act = remote_models.hang
    channel = Outgoing("127.0.0.1").channel(model.url)
    threading.Timer(0.1, channel.abort).start()
    began = time.monotonic()
    with pytest.raises(RemoteUnavailable):
        channel.post(b'{"instances": [[1]]}', {}, seconds=SECONDS, most=10)
    assert time.monotonic() - began < 20


def test_broken_answers_are_told(model: Model) -> None:
    for act in (remote_models.hang_up, lambda handler: handler.wfile.write(b"what?\r\n\r\n")):
        model.act = act
        with pytest.raises(RemoteUnavailable, match=r"cannot be asked|did not answer"):
            post(Outgoing("127.0.0.1"), model.url, seconds=0.5)

    def cut_short(handler: remote_models.Handler) -> None:
        handler.send(200, b"x", Content_Length="100")
        handler.close_connection = True

    model.act = cut_short
    with pytest.raises(RemoteUnavailable, match="IncompleteRead"):
        post(Outgoing("127.0.0.1"), model.url)


def test_nobody_there() -> None:
    with reserved() as port, pytest.raises(RemoteUnavailable, match="refused"):
        post(Outgoing("127.0.0.1"), f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(("text", "seconds"), [("7", 7), ("-1", None), ("soon", None), ("0", 0)])
def test_retry_after_in_seconds(model: Model, text: str, seconds: float | None) -> None:
    model.act = saying(429, Retry_After=text)
    assert post(Outgoing("127.0.0.1"), model.url).retry_after == seconds


def test_retry_after_as_a_date(model: Model) -> None:
    model.act = saying(429, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT")
    assert post(Outgoing("127.0.0.1"), model.url).retry_after == 0


def test_what_is_logged_holds_no_header_and_no_path(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        post(Outgoing("127.0.0.1"), model.url + "/?key=swordfish", Authorization="Bearer swordfish")
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


def test_tls_goes_to_the_checked_address_and_by_the_name(certificate: Path) -> None:
    names: list[Any] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    with remote_models.serving(server) as model:
        trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        find = finding("127.0.0.1")
        out = Outgoing("127.0.0.1", find=find, tls=trusting)
        assert post(out, f"https://a.example:{model.port}/").status == 200
        assert (names, model.headers[0]["Host"]) == (["a.example"], f"a.example:{model.port}")
        for url, tls in (
            (f"https://b.example:{model.port}/", trusting),
            (f"https://a.example:{model.port}/", None),
        ):
            with pytest.raises(RemoteUnavailable, match="no certificate to be trusted"):
                post(Outgoing("127.0.0.1", find=find, tls=tls), url)
    assert model.requests == 1


def test_failures_have_their_codes() -> None:
    codes = {kind.code for kind in (AddressRefused, RemoteAnswer, RemoteUnavailable)}
    assert codes == {"address_refused", "remote_answer", "remote_unavailable"}
    assert all(issubclass(kind, Failure) for kind in (AddressRefused, RemoteAnswer, RemoteUnavailable))


def test_an_answer_s_head_alone_may_be_enough(model: Model) -> None:
    answers = [
        saying(202, b"x" * 10_000_000),
        saying(204, b"", Content_Encoding="gzip"),
        saying(429, b"", Retry_After="7"),
        saying(302, b"", Location="http://127.0.0.1:1/"),
    ]
    model.plan = [*answers]
    channel = Outgoing("127.0.0.1").channel(model.url)
    body = b'{"instances": [[[[0.0]]]]}'
    replies = [channel.post(body, {}, seconds=5, most=None) for _ in answers]
    assert [reply.status for reply in replies] == [202, 204, 429, 302]
    assert [(reply.body, reply.retry_after) for reply in replies][1:3] == [(b"", None), (b"", 7.0)]
    assert len(model.connections) == len(answers)
