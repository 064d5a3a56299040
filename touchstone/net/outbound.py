"""All outbound requests of the service, to checked addresses only.

A name is resolved once for each connection. Each of its addresses is checked, and the connection is made to
one of these, so that DNS cannot give one address to the check and another to the connection. Redirects are
not followed, proxy variables of the environment are not used, and nothing is decompressed.
"""

from __future__ import annotations

import http.client
import io
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from touchstone.errors import AddressRefused, RemoteAnswer, RemoteUnavailable
from touchstone.logs import get_logger
from touchstone.net.addresses import Address, Permits, is_closed, parse_address

CONNECT_SECONDS = 5.0
MAX_URL = 2_000
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_HOST = re.compile(r"[a-z0-9._-]{1,253}")
_PORTS = {"http": 80, "https": 443}
_HTTPS_ONLY = "only https is allowed, except for hosts that the operator names"

_log = get_logger("outgoing")

ResolvedAddress = tuple[int, Any, str]
"""Family, address for the socket, address as text."""

Resolve = Callable[[str, int], Sequence[ResolvedAddress]]


def resolve(host: str, port: int) -> Sequence[ResolvedAddress]:
    """All addresses of a host, by the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [(family, address, str(address[0])) for family, _, _, _, address in found]


@dataclass(frozen=True)
class Target:
    """The parts of a URL that a request needs."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Target:
        """Raises AddressRefused for anything but a plain http or https URL."""
        if len(url) > MAX_URL or not _PRINTABLE.fullmatch(url):
            raise _refusal("expected an https URL in printable ASCII of at most 2,000 characters")
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError as error:
            raise _refusal(str(error)) from None
        if parts.scheme not in _PORTS:
            raise _refusal("the URL must begin with https://")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise _refusal("a URL must hold neither a user, nor a password, nor a fragment")
        is_address = parse_address(host) is not None and "%" not in host  # a zone is of one machine alone
        if not (is_address or _HOST.fullmatch(host)) or port == 0:
            raise _refusal("the URL names no host that could be asked")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.scheme, host, port or _PORTS[parts.scheme], path)


def _refusal(why: str) -> AddressRefused:
    return AddressRefused(f"url: {why}", field="url")


@dataclass(frozen=True)
class Reply:
    """A response. Redirects and errors are replies too, which the caller judges."""

    status: int
    body: bytes = field(repr=False)
    retry_after: float | None = None


class OutboundClient:
    """Checks where requests may go, and opens channels.

    `allow` are the operator's exceptions: hosts, host:port and networks that may be reached although they are
    private, and by plain http. Raises ValueError where they cannot be read.
    """

    def __init__(
        self, allow: str | None = None, *, resolver: Resolve = resolve, tls: ssl.SSLContext | None = None
    ) -> None:
        self._permits = Permits.parse(allow)
        self._resolver = resolver
        self._tls_context = tls

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """Verifies certificates against the system's trust store."""
        return self._tls_context or ssl.create_default_context()

    def channel(self, url: str) -> Channel:
        """A connection that is opened at its first request. Raises AddressRefused for an invalid URL."""
        return Channel(self, Target.parse(url))

    def check(self, url: str) -> None:
        """Raise AddressRefused or RemoteUnavailable where a request to this URL would not be sent; resolves
        its host.
        """
        self.addresses(Target.parse(url))

    def check_url(self, url: str) -> None:
        """Raise AddressRefused for a URL that is never allowed, as far as this is known without resolving a
        name.
        """
        target = Target.parse(url)
        for text in _literal_addresses(target):
            self._check(target, parse_address(text))
        if target.scheme != "https" and not self._permits.entries:
            raise _refusal(_HTTPS_ONLY)

    def addresses(self, target: Target) -> Sequence[ResolvedAddress]:
        """All addresses of the target, each of them checked."""
        try:
            found = self._resolver(target.host, target.port)
        except (OSError, UnicodeError):
            raise RemoteUnavailable(f"the host {target.host} cannot be resolved") from None
        if not found:
            raise RemoteUnavailable(f"the host {target.host} has no address")
        for _, _, text in found:
            self._check(target, parse_address(text))
        return found

    def _check(self, target: Target, address: Address | None) -> None:
        if address is not None and self._permits.cover(target.host, target.port, address):
            return
        if address is None or is_closed(address):
            raise _refusal(
                f"{target.host} leads to a private or reserved address, which only the operator may allow "
                "(TOUCHSTONE_OUTGOING_ALLOW)"
            )
        if target.scheme != "https":
            raise _refusal(_HTTPS_ONLY)


def _literal_addresses(target: Target) -> list[str]:
    """The addresses of a host in another notation, such as 127.1; none for a name that must be resolved."""
    if target.host == "localhost" or target.host.endswith(".localhost"):
        return ["127.0.0.1"]
    try:
        found = socket.getaddrinfo(target.host, None, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]


class Channel:
    """One connection, kept alive between requests. One thread sends; any other may abort."""

    def __init__(self, client: OutboundClient, target: Target) -> None:
        self.target = target
        self._client = client
        self._connection: _SocketConnection | None = None
        self._socket: socket.socket | None = None
        self._aborted = False
        self._sending = False

    def post(
        self,
        body: bytes,
        headers: Mapping[str, str],
        *,
        seconds: float,
        max_bytes: int | None,
        connect: float = CONNECT_SECONDS,
    ) -> Reply:
        """Send one request and read at most `max_bytes` bytes of answer, all within `seconds`.

        Where `max_bytes` is None only the response's head is read, and the connection is closed after it.
        Nothing is ever sent twice. Raises AddressRefused, RemoteUnavailable, RemoteAnswer.
        """
        began = time.monotonic()
        try:
            self._sending = False
            connection = self._prepare(began + seconds, connect)
            self._sending = True
            connection.request("POST", self.target.path, body, {**headers, "Accept-Encoding": "identity"})
            reply = self._read(connection.getresponse(), max_bytes)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._to_failure(error, time.monotonic() - began) from None
        except BaseException:
            self.close()
            raise
        took = round(time.monotonic() - began, 3)
        _log.debug("asked", host=self.target.host, status=reply.status, seconds=took)
        return reply

    def abort(self) -> None:
        """End the request in flight, from any thread: the thread that sends it gets RemoteUnavailable."""
        self._aborted = True
        if (sock := self._socket) is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
        if self._socket is not None:
            self._socket.close()
        self._connection = self._socket = None

    def _prepare(self, until: float, connect: float) -> _SocketConnection:
        if self._socket is not None and _is_stale(self._socket):
            self.close()
        if self._connection is None or self._socket is None:
            self._socket = self._connect(until, connect)
            self._connection = _SocketConnection(self.target)
        self._connection.sock = _DeadlineSocket(self._socket, until)
        return self._connection

    def _connect(self, until: float, connect: float) -> socket.socket:
        """A socket to the first address that accepts the connection, with TLS where the URL is https."""
        failure: OSError = OSError("no address")
        for family, address, _ in self._client.addresses(self.target):
            try:
                return self._wrap_tls(self._open(family, address, _remaining(until, connect)), until)
            except OSError as error:
                failure = error
        raise failure

    def _open(self, family: int, address: Any, seconds: float) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(seconds)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    def _wrap_tls(self, sock: socket.socket, until: float) -> socket.socket:
        self._socket = sock  # so that `abort` finds it
        if self._aborted:
            sock.close()
            raise OSError("aborted")
        if self.target.scheme == "http":
            return sock
        tls = self._client.tls.wrap_socket(
            sock, server_hostname=self.target.host, do_handshake_on_connect=False
        )
        self._socket = tls
        try:
            tls.settimeout(_remaining(until))
            tls.do_handshake()
        except BaseException:
            tls.close()
            raise
        return tls

    def _read(self, response: http.client.HTTPResponse, max_bytes: int | None) -> Reply:
        retry_after = _retry_after(response.headers.get("Retry-After"))
        if max_bytes is None:
            self.close()
            return Reply(response.status, b"", retry_after)
        coding = response.headers.get("Content-Encoding", "identity")
        if coding.strip().lower() != "identity":
            raise RemoteAnswer(f"{self.target.host} sent a compressed answer, although none was requested")
        body = response.read(max_bytes + 1)
        if len(body) > max_bytes:
            raise RemoteAnswer(f"{self.target.host} sent an answer of more than {max_bytes:,} bytes")
        if response.length:
            raise http.client.IncompleteRead(body)
        if response.will_close or self._aborted:
            self.close()
        return Reply(response.status, body, retry_after)

    def _to_failure(self, error: Exception, seconds: float) -> RemoteUnavailable:
        host = self.target.host
        if isinstance(error, TimeoutError):
            why = f"{host} did not answer within {seconds:.3g} s"
            return RemoteUnavailable(why, timed_out=True) if self._sending else RemoteUnavailable(why)
        if isinstance(error, ssl.SSLCertVerificationError):
            return RemoteUnavailable(f"{host} has no trusted certificate: {error.verify_message}")
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        return RemoteUnavailable(f"{host} cannot be reached: {why}")


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a given socket; never opens one."""

    def __init__(self, target: Target) -> None:
        self.default_port = _PORTS[target.scheme]
        super().__init__(target.host, target.port)
        self.auto_open = 0


class _DeadlineSocket(io.RawIOBase):
    """A socket whose reads and writes all end at one deadline, however slow the other side is."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._until = until

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._sock.settimeout(_remaining(self._until))
            rest = rest[self._sock.send(rest) :]

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineSocket(self._sock, self._until))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_remaining(self._until))
        return self._sock.recv_into(buffer)


def _remaining(until: float, limit: float = float("inf")) -> float:
    left = min(until - time.monotonic(), limit)
    if left <= 0:
        raise TimeoutError
    return left


def _is_stale(sock: socket.socket) -> bool:
    """Whether the other side closed an idle connection, or sent data without a request."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _retry_after(text: str | None) -> float | None:
    """Seconds, from seconds or from a date; None where there is neither."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
