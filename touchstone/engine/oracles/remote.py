"""A remote model as an oracle: rows are sent in requests, and the responses are read as logits."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from touchstone.engine.oracles.oracle import StillWanted, preprocessing_for
from touchstone.engine.oracles.pass_answers import PassAnswers
from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.engine.oracles.remote_protocols import RemoteProtocol
from touchstone.engine.queries import Answer, Gradient, NoisyLogits, Query
from touchstone.errors import (
    Failure,
    GradientRefused,
    LedgerUnavailable,
    ModelUnusable,
    RemoteAnswer,
    RemoteUnavailable,
)
from touchstone.models.manifest import Manifest
from touchstone.models.remote_manifest import Remote
from touchstone.net.outbound import Channel, OutboundClient, Reply
from touchstone.settings import check_secret_tenant

POLL_SECONDS = 0.05
"""How often to check whether answers are still wanted."""

LEDGER_RETRY_SECONDS = 0.2
GRACE_SECONDS = 1.0
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 60.0
_RETRY_STATUSES = (429, 503)


class SpendFunction(Protocol):
    """Counts the rows sent to a remote model by all workers together."""

    def __call__(self, model: str, rows: int, *, budget: int | None, rate: float | None, token: str) -> float:
        """Seconds until the rows may be sent; 0 where they may be sent now, and then they are spent.

        Calls with the same token count once. Raises QueryBudgetSpent and LedgerUnavailable.
        """


@dataclass(frozen=True)
class RemoteAccess:
    """What queries to remote models need: an outbound client, a function that counts, secrets by name and
    host.
    """

    outgoing: OutboundClient
    spend: SpendFunction
    secret: Callable[[str, str], str]
    check_tenant: Callable[[str, str], None] = check_secret_tenant
    """Raises ModelUnusable where a secret, by its name, is not for a tenant."""

    def check(self, manifest: Manifest, tenant: str) -> None:
        """Raise ModelUnusable where the model needs a secret that this tenant may not use."""
        if manifest.remote is not None and manifest.remote.secret is not None:
            self.check_tenant(manifest.remote.secret, tenant)

    def oracle_for(self, manifest: Manifest) -> RemoteOracle:
        """An oracle for a remote model's manifest. Raises ModelUnusable, AddressRefused."""
        return RemoteOracle(manifest, self)


class RemoteOracle:
    """Queries a remote model for logits; it has no gradients.

    Images are preprocessed here, on the CPU, as the manifest says; or are sent as 8-bit files of the upload's
    size, if the model takes files. Answering blocks, so the oracle needs a thread of its own.
    """

    shared = True
    eval_mode = None
    device = torch.device("cpu")

    def __init__(self, manifest: Manifest, access: RemoteAccess) -> None:
        self._channels: list[Channel] = []
        if manifest.remote is None:
            raise ModelUnusable(f"{manifest.id} is not a remote model")
        self.manifest, self.remote = manifest, manifest.remote
        self.preprocessing = (
            Preprocessing.from_manifest(manifest, self.device)
            if manifest.takes_noise
            else Preprocessing(None, None, None)
        )
        self.protocol = RemoteProtocol(manifest, manifest.remote)
        self.spend = access.spend
        self._access = access
        self._headers = self._secret_headers(manifest.remote)
        self.rows = self.fixed_rows = manifest.remote.batch_rows * manifest.remote.parallel

    def answer(self, queries: Sequence[Query | NoisyLogits]) -> Sequence[Answer | Failure]:
        """As `answer_while`, with every answer wanted to the end."""
        return self.answer_while(queries, lambda: [True] * len(queries))

    def answer_while(
        self, queries: Sequence[Query | NoisyLogits], still_wanted: StillWanted
    ) -> Sequence[Answer | Failure]:
        """An answer to each query, or the failure that prevented it. Raises GradientRefused."""
        if any(isinstance(query, Gradient) for query in queries):
            raise GradientRefused(f"{self.manifest.id} is a remote model, which gives no gradients")
        with torch.no_grad():
            rows = [row for query in queries for row in self._preprocess(query)]
        owners = [number for number, query in enumerate(queries) for _ in range(len(query))]
        remote_pass = _RemotePass(self, rows, owners, still_wanted)
        remote_pass.run()
        return [remote_pass.answer(number) for number in range(len(queries))]

    def close_idle(self) -> None:
        """Close the connections that are kept for the next request."""
        channels, self._channels = self._channels, []
        for channel in channels:
            channel.close()

    def __del__(self) -> None:
        self.close_idle()

    def acquire_channel(self) -> Channel:
        """An idle connection, or a new one."""
        return self._channels.pop() if self._channels else self._access.outgoing.channel(self.protocol.url)

    def release_channel(self, channel: Channel) -> None:
        """Keep a connection for the next request."""
        self._channels.append(channel)

    def post(self, channel: Channel, images: Sequence[NDArray[np.float32]]) -> Reply:
        """Send one request for these images; blocks. Raises the failures of `Channel.post`."""
        body, headers = self.protocol.build_request(images)
        return channel.post(
            body,
            headers | self._headers,
            seconds=self.remote.timeout,
            max_bytes=self.protocol.max_bytes(len(images)),
        )

    def _preprocess(self, query: Query | NoisyLogits) -> NDArray[np.float32]:
        inputs = preprocessing_for(query)(self.preprocessing, query.x)
        array: NDArray[np.float32] = inputs.float().numpy()
        return array

    def _secret_headers(self, remote: Remote) -> dict[str, str]:
        if remote.secret is None:
            return {}
        host = self._access.outgoing.channel(self.protocol.url).target.host
        name, value = remote.header(self._access.secret(remote.secret, host))
        return {name: value}


@dataclass(eq=False)
class _RowsRequest:
    """A request for some rows of a pass, and how often it was sent."""

    rows: range
    attempts: int = 0
    due: float = 0.0
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    channel: Channel | None = None
    deadline: float = 0.0


class _RemotePass:
    """The requests of one pass: when each is sent, again or for the first time, and when it is given up."""

    def __init__(
        self,
        oracle: RemoteOracle,
        images: Sequence[NDArray[np.float32]],
        owners: Sequence[int],
        still_wanted: StillWanted,
    ) -> None:
        self._oracle, self._remote = oracle, oracle.remote
        self._images, self._still_wanted = images, still_wanted
        self._answers = PassAnswers(owners)
        self._waiting = _split_requests(range(len(images)), self._remote.batch_rows)
        self._under_way: set[_RowsRequest] = set()
        self._arrived: queue.SimpleQueue[tuple[_RowsRequest, Reply | Exception]] = queue.SimpleQueue()

    def run(self) -> None:
        """Send requests until every row is answered, has failed or is no longer wanted."""
        try:
            while self._waiting or self._under_way:
                self._drop_unwanted()
                self._launch()
                self._collect()
        finally:
            for request in list(self._under_way):
                self._abandon(request)
            self._close_late_channels()

    def answer(self, owner: int) -> Answer | Failure:
        """The answer to a query, or its failure."""
        return self._answers.answer(owner)

    def _close_late_channels(self) -> None:
        with suppress(queue.Empty):
            while True:
                request, _ = self._arrived.get_nowait()
                if request.channel is not None:
                    request.channel.close()

    def _drop_unwanted(self) -> None:
        open_ = self._answers.open_owners(self._still_wanted())
        self._waiting = [one for one in self._waiting if self._answers.owners_of(one.rows) & open_]
        now = time.monotonic()
        for request in list(self._under_way):
            if not self._answers.owners_of(request.rows) & open_:
                self._abandon(request)
            elif now > request.deadline:
                self._abandon(request)
                self._answers.fail(
                    request.rows, RemoteUnavailable(f"{self._oracle.manifest.id} did not answer in time")
                )

    def _abandon(self, request: _RowsRequest) -> None:
        """Forget a request that is under way; its thread ends when its socket is shut down."""
        self._under_way.discard(request)
        if request.channel is not None:
            request.channel.abort()

    def _launch(self) -> None:
        """Send what is due, as far as the rate, the budget and the number of connections allow."""
        now = time.monotonic()
        for request in [one for one in self._waiting if one.due <= now]:
            if len(self._under_way) >= self._remote.parallel or not self._try_spend(request):
                return
            self._waiting.remove(request)
            if not self._answers.have_failed(request.rows):
                self._send(request)

    def _try_spend(self, request: _RowsRequest) -> bool:
        """Whether the request may be sent, or has failed; false where it and all behind it must wait."""
        remote = self._remote
        try:
            pause = self._oracle.spend(
                self._oracle.manifest.digest,
                len(request.rows),
                budget=remote.budget,
                rate=remote.rate,
                token=request.token,
            )
        except LedgerUnavailable:
            pause = LEDGER_RETRY_SECONDS
        except Failure as spent:
            self._answers.fail(request.rows, spent)
            return True
        request.due = time.monotonic() + pause
        return pause <= 0

    def _send(self, request: _RowsRequest) -> None:
        try:
            request.channel = self._oracle.acquire_channel()
        except Failure as refused:
            self._answers.fail(request.rows, refused)
            return
        request.attempts += 1
        request.token = secrets.token_hex(8)
        request.deadline = time.monotonic() + self._remote.timeout + GRACE_SECONDS
        self._under_way.add(request)
        images = self._images[request.rows.start : request.rows.stop]
        # A thread of its own, which can be left behind: a running name resolution cannot be interrupted.
        threading.Thread(
            target=_exchange,
            args=(self._oracle, request, request.channel, images, self._arrived),
            name=f"request to {self._oracle.manifest.id}",
            daemon=True,
        ).start()

    def _collect(self) -> None:
        """Wait a moment for a response."""
        if not self._waiting and not self._under_way:
            return
        try:
            request, reply = self._arrived.get(timeout=self._wait_seconds())
        except queue.Empty:
            return
        if request not in self._under_way:
            return  # abandoned in the meantime
        self._under_way.remove(request)
        if request.channel is not None:
            self._oracle.release_channel(request.channel)
            request.channel = None
        self._receive(request, reply)

    def _wait_seconds(self) -> float:
        if self._under_way:
            return POLL_SECONDS
        soonest = min(request.due for request in self._waiting) - time.monotonic()
        return min(max(soonest, 0.001), POLL_SECONDS)

    def _receive(self, request: _RowsRequest, reply: Reply | Exception) -> None:
        try:
            body = _read_body(self._oracle.manifest.id, reply)
            scores = self._oracle.protocol.read_scores(body, len(request.rows))
            self._answers.store(request.rows, scores)
        except _RetryLater as later:
            if request.attempts > self._remote.retries or later.pause > MAX_RETRY_SECONDS:
                self._answers.fail(request.rows, later.failure)
            else:
                request.due = time.monotonic() + (later.pause or FIRST_RETRY_SECONDS * 2**request.attempts)
                self._waiting.append(request)
        except RemoteAnswer as wrong:
            self._split_or_fail(request, wrong)
        except Failure as failure:
            self._answers.fail(request.rows, failure)

    def _split_or_fail(self, request: _RowsRequest, wrong: RemoteAnswer) -> None:
        """One job's rows must not fail for another's: send the rows of each again by themselves."""
        parts = self._answers.split_by_owner(request.rows)
        if len(parts) == 1:
            self._answers.fail(request.rows, wrong)
        else:
            self._waiting.extend(map(_RowsRequest, parts))


class _RetryLater(Exception):  # noqa: N818 - not an error: the request is sent again
    """The request may be sent again, after a pause in seconds; otherwise this is why it failed."""

    def __init__(self, failure: Failure, pause: float = 0.0) -> None:
        super().__init__(failure.detail)
        self.failure = failure
        self.pause = pause


def _read_body(name: str, reply: Reply | Exception) -> bytes:
    """The body of a response with scores. Raises _RetryLater where the request may be sent again."""
    if isinstance(reply, RemoteUnavailable) and not reply.extra.get("timed_out"):
        raise _RetryLater(reply)
    if isinstance(reply, Exception):
        raise reply
    if reply.status in _RETRY_STATUSES:
        pause = reply.retry_after or 0.0
        why = f"{name} cannot answer now (status {reply.status})"
        raise _RetryLater(RemoteUnavailable(why, retry_after=max(1, round(pause))), pause)
    if reply.status >= 500:
        raise RemoteUnavailable(f"{name} failed to answer (status {reply.status})")
    if reply.status >= 300:
        why = "; redirects are not followed" if reply.status < 400 else ""
        raise RemoteAnswer(f"{name} answered with status {reply.status} instead of scores{why}")
    return reply.body


def _exchange(
    oracle: RemoteOracle,
    request: _RowsRequest,
    channel: Channel,
    images: Sequence[NDArray[np.float32]],
    arrived: queue.SimpleQueue[tuple[_RowsRequest, Reply | Exception]],
) -> None:
    try:
        arrived.put((request, oracle.post(channel, images)))
    except Exception as error:  # noqa: BLE001 - raised on the thread that waits for the response
        arrived.put((request, error))


def _split_requests(rows: range, size: int) -> list[_RowsRequest]:
    return [_RowsRequest(rows[at : at + size]) for at in range(0, len(rows), size)]
