"""Nothing leaves the service but to addresses that were checked, and what comes back is bounded."""

from __future__ import annotations

import ipaddress
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
import remote
from remote import Model, saying

from touchstone.addresses import Permits, is_closed
from touchstone.errors import AddressRefused, Failure, RemoteAnswer, RemoteUnavailable
from touchstone.outgoing import Outgoing, Target, resolve

PUBLIC = "93.184.216.34"


@pytest.fixture
def model() -> Iterator[Model]:
    with remote.serving() as model:
        yield model


def finding(*answers: str | list[str]) -> Any:
    """A resolver that gives one answer after the other, and counts."""
    left = list(answers)

    def find(_host: str, port: int) -> list[tuple[int, Any, str]]:
        texts = left.pop(0) if len(left) > 1 else left[0]
        each = [texts] if isinstance(texts, str) else texts
        return [(socket.AF_INET6 if ":" in text else socket.AF_INET, (text, port), text) for text in each]

    return find


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
        *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.168.1.1", "198.18.0.1"),
        *("192.0.2.1", "192.88.99.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
        *(
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
        ),
        *("64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378::1"),
        *(
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "5f00::1",
        ),
        *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "4000::1"),
    ],
)
def test_addresses_that_are_not_the_internet_are_closed(text: str) -> None:
    assert is_closed(ipaddress.ip_address(text))
    with pytest.raises(AddressRefused, match="private or reserved"):
        Outgoing(find=finding(text)).check("https://a.example/")


@pytest.mark.parametrize(
    "text", ["8.8.8.8", PUBLIC, "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"]
)
def test_public_addresses_are_open_for_https_alone(text: str) -> None:
    assert not is_closed(ipaddress.ip_address(text))
    out = Outgoing(find=finding(text))
    out.check("https://a.example/x?y=z")
    with pytest.raises(AddressRefused, match="only https"):
        out.check("http://a.example/")


@pytest.mark.parametrize(
    "url",
    [
        *("", "a.example", "//a.example", "ftp://a.example", "file:///etc/passwd", "https://", "https:///x"),
        *(
            "https://user@a.example/",
            "https://u:p@a.example/",
            "https://a.example/#x",
            "https://a.example:99999/",
        ),
        *(
            "https://a.example:0/",
            "https://a .example/",
            "https://a.example/\r\nX: y",
            "https://[::1/",
            "https://é/",
        ),
        *(
            "https://a.example/\x00",
            "https://a.example/" + "x" * 2000,
            "https://%31%32%37.0.0.1/",
            "https://a@b@c/",
        ),
    ],
)
def test_what_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        Target.parse(url)


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::ffff:7f00:1]", "localhost"]
)
def test_loopback_in_disguise_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match="private or reserved"):
        Outgoing().check(f"https://{host}/")


def test_every_address_of_a_name_is_checked() -> None:
    with pytest.raises(AddressRefused):
        Outgoing(find=finding([PUBLIC, "10.0.0.1"])).check("https://a.example/")
    with pytest.raises(RemoteUnavailable, match="no address"):
        Outgoing(find=finding([])).check("https://a.example/")
    with pytest.raises(RemoteUnavailable, match="cannot be resolved"):
        Outgoing().check("https://nowhere.invalid/")


@pytest.mark.parametrize(
    ("allow", "url", "address"),
    [
        ("models.internal", "http://models.internal/", "10.0.0.1"),
        ("other, models.internal:8080", "http://MODELS.internal.:8080/", "127.0.0.1"),
        ("10.0.0.0/8", "http://a.example:1/", "10.9.9.9"),
        ("127.0.0.1", "http://127.0.0.1:5/", "127.0.0.1"),
        ("127.0.0.1:5", "http://127.0.0.1:5/", "127.0.0.1"),
        ("[::1]:5", "http://[::1]:5/", "::1"),
        ("fd00::/8", "https://a.example/", "fd12::1"),
    ],
)
def test_the_operator_may_allow_hosts_ports_and_networks(allow: str, url: str, address: str) -> None:
    Outgoing(allow, find=finding(address)).check(url)
    with pytest.raises(AddressRefused):
        Outgoing(find=finding(address)).check(url)


@pytest.mark.parametrize(
    ("allow", "url", "address"),
    [
        ("models.internal:8080", "http://models.internal:8081/", "10.0.0.1"),
        ("internal", "http://models.internal/", "10.0.0.1"),
        ("10.0.0.0/8", "http://a.example/", "11.0.0.1"),
        ("127.0.0.1:5", "http://127.0.0.1:6/", "127.0.0.1"),
        ("127.0.0.0/8", "https://a.example/", "::ffff:127.0.0.1"),
    ],
)
def test_and_no_more_than_that(allow: str, url: str, address: str) -> None:
    with pytest.raises(AddressRefused):
        Outgoing(allow, find=finding(address)).check(url)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "a b", "https://a", "a:b", "a:99999", "*.internal", "a:0"])
def test_an_exception_that_cannot_be_read_is_told_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="no host"):
        Permits.parse(text)


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
        assert channel.post(b'{"instances": [[1]]}', {}, seconds=5, most=1000).status == 200

    for _ in range(3):
        ask()
    assert len(model.connections) == 1
    model.plan = [saying(200, b"", Connection="close")]
    ask()
    ask()
    assert len(model.connections) == 2

    def close_without_a_word(handler: remote.Handler) -> None:
        handler.reply(200, b"")
        handler.close_connection = True

    model.plan = [close_without_a_word]
    ask()
    time.sleep(0.1)
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
    def forever(handler: remote.Handler) -> None:
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


@pytest.mark.parametrize("act", [remote.hang, remote.drip])
def test_slow_answers_end_in_time(model: Model, act: remote.Act) -> None:
    model.act = act
    began = time.monotonic()
    with pytest.raises(RemoteUnavailable, match="did not answer within") as caught:
        post(Outgoing("127.0.0.1"), model.url, seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 1
    assert caught.value.extra == {"timed_out": True}


def test_an_abort_from_another_thread_ends_the_wait(model: Model) -> None:
    model.act = remote.hang
    channel = Outgoing("127.0.0.1").channel(model.url)
    threading.Timer(0.1, channel.abort).start()
    began = time.monotonic()
    with pytest.raises(RemoteUnavailable):
        channel.post(b'{"instances": [[1]]}', {}, seconds=10, most=10)
    assert time.monotonic() - began < 1


def test_broken_answers_are_told(model: Model) -> None:
    for act in (remote.hang_up, lambda handler: handler.wfile.write(b"what?\r\n\r\n")):
        model.act = act
        with pytest.raises(RemoteUnavailable, match=r"cannot be asked|did not answer"):
            post(Outgoing("127.0.0.1"), model.url, seconds=0.5)

    def cut_short(handler: remote.Handler) -> None:
        handler.send(200, b"x", Content_Length="100")
        handler.close_connection = True

    model.act = cut_short
    with pytest.raises(RemoteUnavailable, match="IncompleteRead"):
        post(Outgoing("127.0.0.1"), model.url)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RemoteUnavailable, match="refused"):
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
    with remote.serving(server) as model:
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


@pytest.mark.parametrize(
    ("allow", "url", "taken"),
    [
        (None, "https://a.example/", True),
        (None, "http://a.example/", False),
        ("10.0.0.0/8", "http://a.example/", True),  # the name may lead there
        (None, "https://127.1/", False),
        (None, "https://2130706433/", False),
        (None, "https://api.localhost/", False),
        ("localhost", "http://localhost:9000/", True),
        ("127.0.0.1:9000", "http://127.0.0.1:9000/", True),
        ("127.0.0.1:9000", "http://127.0.0.1:9001/", False),
        (None, "https://8.8.8.8/", True),
        ("10.0.0.0/8", "http://8.8.8.8/", False),
    ],
)
def test_what_is_written_is_judged_without_resolving(allow: str | None, url: str, *, taken: bool) -> None:
    def find(*_: Any) -> Any:
        raise AssertionError("resolved")

    outgoing = Outgoing(allow, find=find)
    if taken:
        return outgoing.check_written(url)
    with pytest.raises(AddressRefused):
        outgoing.check_written(url)
