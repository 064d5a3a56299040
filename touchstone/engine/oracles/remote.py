"""A model behind an address, as an oracle: rows go out in requests, and their answers come back as logits."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol as Interface

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from touchstone.engine.oracles.oracle import Wanted, way
from touchstone.engine.oracles.preprocessing import Sight
from touchstone.engine.oracles.remote_protocols import Protocol, Scores
from touchstone.engine.queries import Answer, Gradient, Noisy, Query
from touchstone.errors import (
    Canceled,
    Failure,
    GradientRefused,
    LedgerUnavailable,
    ModelUnusable,
    RemoteAnswer,
    RemoteUnavailable,
)
from touchstone.models.manifest import Manifest
from touchstone.models.remote_manifest import Remote
from touchstone.net.outbound import Channel, Outgoing, Reply

TICK_SECONDS = 0.05
"""How often it is looked whether an answer is still wanted."""

LEDGER_SECONDS = 0.2
GRACE_SECONDS = 1.0
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 60.0
_AGAIN = (429, 503)


class Spend(Interface):
    """Counts what a remote model is sent, for all workers together."""

    def __call__(self, model: str, rows: int, *, budget: int | None, rate: float | None, token: str) -> float:
        """Seconds until the rows may be asked for; 0 where they may be sent now, and then they are spent.

        A call repeated with the same token is one. Raises QueryBudgetSpent and LedgerUnavailable.
        """


@dataclass(frozen=True)
class Ways:
    """What it takes to ask remote models: a way out, somebody who counts, and secrets by name and host."""

    outgoing: Outgoing
    spend: Spend
    secret: Callable[[str, str], str]

    def to(self, card: Manifest) -> RemoteOracle:
        """An oracle for a remote model's card. Raises ModelUnusable, AddressRefused."""
        return RemoteOracle(card, self)


class RemoteOracle:
    """Asks a remote model for what it answers: never for gradients.

    Images are made ready here, on the processor, as the manifest says; or are sent as 8-bit files of the
    upload's size, if the model wants files. It blocks while it asks, so it belongs on a lane of its own.
    """

    shared = True
    eval_mode = None
    device = torch.device("cpu")

    def __init__(self, card: Manifest, ways: Ways) -> None:
        self._channels: list[Channel] = []
        if card.remote is None:
            raise ModelUnusable(f"{card.id} is no remote model")
        self.card, self.remote = card, card.remote
        self.sight = Sight.of(card, self.device) if card.takes_noise else Sight(None, None, None)
        self.protocol = Protocol(card, card.remote)
        self.spend = ways.spend
        self._ways = ways
        self._headers = self._with_secret(card.remote)
        self.rows = self.fixed_rows = card.remote.batch_rows * card.remote.parallel

    def answer(self, queries: Sequence[Query | Noisy]) -> Sequence[Answer | Failure]:
        """As `answer_wanted`, wanted to the end."""
        return self.answer_wanted(queries, lambda: [True] * len(queries))

    def answer_wanted(self, queries: Sequence[Query | Noisy], wanted: Wanted) -> Sequence[Answer | Failure]:
        """An answer to each query, or why there is none. Raises GradientRefused."""
        if any(isinstance(query, Gradient) for query in queries):
            raise GradientRefused(f"{self.card.id} answers behind an address, which tells no gradients")
        with torch.no_grad():
            seen = [row for query in queries for row in self._see(query)]
        owners = [number for number, query in enumerate(queries) for _ in range(len(query))]
        asking = _Pass(self, seen, owners, wanted)
        asking.run()
        return [asking.answer(number) for number in range(len(queries))]

    def rest(self) -> None:
        """Close the connections that wait for the next request."""
        channels, self._channels = self._channels, []
        for channel in channels:
            channel.close()

    def __del__(self) -> None:
        self.rest()

    def channel(self) -> Channel:
        """A connection that nobody uses."""
        return self._channels.pop() if self._channels else self._ways.outgoing.channel(self.protocol.url)

    def give_back(self, channel: Channel) -> None:
        """Keep a connection for the next request."""
        self._channels.append(channel)

    def post(self, channel: Channel, images: Sequence[NDArray[np.float32]]) -> Reply:
        """Ask about images; blocks. Raises the failures of `Channel.post`."""
        body, headers = self.protocol.request(images)
        return channel.post(
            body,
            headers | self._headers,
            seconds=self.remote.timeout,
            most=self.protocol.most_bytes(len(images)),
        )

    def _see(self, query: Query | Noisy) -> NDArray[np.float32]:
        seen = way(query)(self.sight, query.x)
        array: NDArray[np.float32] = seen.float().numpy()
        return array

    def _with_secret(self, remote: Remote) -> dict[str, str]:
        if remote.secret is None:
            return {}
        host = self._ways.outgoing.channel(self.protocol.url).target.host
        name, value = remote.header(self._ways.secret(remote.secret, host))
        return {name: value}


@dataclass(eq=False)
class _Request:
    """Some rows of a pass, and how often they were sent."""

    rows: range
    attempts: int = 0
    due: float = 0.0
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    channel: Channel | None = None
    late: float = 0.0


class _Pass:
    """The requests of one pass: some wait, some are under way, and the rest are answered or have failed."""

    def __init__(
        self,
        oracle: RemoteOracle,
        images: Sequence[NDArray[np.float32]],
        owners: Sequence[int],
        wanted: Wanted,
    ) -> None:
        self._oracle, self._remote = oracle, oracle.remote
        self._images, self._owners, self._wanted = images, owners, wanted
        self._scores: list[Scores | None] = [None] * len(images)
        self._failures: dict[int, Failure] = {}
        self._waiting = _cut(range(len(images)), self._remote.batch_rows)
        self._under_way: set[_Request] = set()
        self._arrived: queue.SimpleQueue[tuple[_Request, Reply | Exception]] = queue.SimpleQueue()

    def run(self) -> None:
        """Ask until every row has an answer, has failed, or is no longer wanted."""
        try:
            while self._waiting or self._under_way:
                self._drop_unwanted()
                self._launch()
                self._collect()
        finally:
            for request in list(self._under_way):
                self._abandon(request)
            self._close_late_ones()

    def _close_late_ones(self) -> None:
        with suppress(queue.Empty):
            while True:
                request, _ = self._arrived.get_nowait()
                if request.channel is not None:
                    request.channel.close()

    def answer(self, owner: int) -> Answer | Failure:
        """What became of the owner's rows."""
        if owner in self._failures:
            return self._failures[owner]
        mine = [score for score, one in zip(self._scores, self._owners, strict=True) if one == owner]
        told = [score for score in mine if score is not None]
        return Answer(_logits(told)) if len(told) == len(mine) else Canceled("nobody waits for the answer")

    def _drop_unwanted(self) -> None:
        flags = self._wanted()
        open_ = {owner for owner, wanted in enumerate(flags) if wanted and owner not in self._failures}
        self._waiting = [request for request in self._waiting if self._owners_of(request) & open_]
        now = time.monotonic()
        for request in list(self._under_way):
            if not self._owners_of(request) & open_:
                self._abandon(request)
            elif now > request.late:
                self._abandon(request)
                self._fail(request, RemoteUnavailable(f"{self._oracle.card.id} did not answer in time"))

    def _owners_of(self, request: _Request) -> set[int]:
        return set(self._owners[request.rows.start : request.rows.stop])

    def _abandon(self, request: _Request) -> None:
        """Forget a request that is under way; its thread ends when its socket is shut down."""
        self._under_way.discard(request)
        if request.channel is not None:
            request.channel.abort()

    def _fail(self, request: _Request, failure: Failure) -> None:
        for owner in self._owners_of(request):
            self._failures.setdefault(owner, failure)

    def _launch(self) -> None:
        """Send what is due, as far as the rate, the budget and the number of connections allow."""
        now = time.monotonic()
        for request in [one for one in self._waiting if one.due <= now]:
            if len(self._under_way) >= self._remote.parallel or not self._spent(request):
                return
            self._waiting.remove(request)
            if self._owners_of(request) - set(self._failures):
                self._send(request)

    def _spent(self, request: _Request) -> bool:
        """Whether the request was dealt with; false where it must wait, and all behind it."""
        remote = self._remote
        try:
            pause = self._oracle.spend(
                self._oracle.card.digest,
                len(request.rows),
                budget=remote.budget,
                rate=remote.rate,
                token=request.token,
            )
        except LedgerUnavailable:
            pause = LEDGER_SECONDS
        except Failure as spent:
            self._fail(request, spent)
            return True
        request.due = time.monotonic() + pause
        return pause <= 0

    def _send(self, request: _Request) -> None:
        try:
            request.channel = self._oracle.channel()
        except Failure as refused:
            self._fail(request, refused)
            return
        request.attempts += 1
        request.token = secrets.token_hex(8)
        request.late = time.monotonic() + self._remote.timeout + GRACE_SECONDS
        self._under_way.add(request)
        images = self._images[request.rows.start : request.rows.stop]
        # A thread of its own, since nothing else can be left behind: a name's resolution cannot be ended.
        threading.Thread(
            target=_exchange,
            args=(self._oracle, request, request.channel, images, self._arrived),
            name=f"request to {self._oracle.card.id}",
            daemon=True,
        ).start()

    def _collect(self) -> None:
        """Wait a moment for an answer."""
        if not self._waiting and not self._under_way:
            return
        try:
            request, reply = self._arrived.get(timeout=self._patience())
        except queue.Empty:
            return
        if request not in self._under_way:
            return  # abandoned meanwhile
        self._under_way.remove(request)
        if request.channel is not None:
            self._oracle.give_back(request.channel)
            request.channel = None
        self._receive(request, reply)

    def _patience(self) -> float:
        if self._under_way:
            return TICK_SECONDS
        soonest = min(request.due for request in self._waiting) - time.monotonic()
        return min(max(soonest, 0.001), TICK_SECONDS)

    def _receive(self, request: _Request, reply: Reply | Exception) -> None:
        try:
            self._take(request, self._body(reply))
        except _Later as later:
            if request.attempts > self._remote.retries or later.pause > LONGEST_PAUSE:
                self._fail(request, later.failure)
            else:
                request.due = time.monotonic() + (later.pause or FIRST_PAUSE * 2**request.attempts)
                self._waiting.append(request)
        except RemoteAnswer as wrong:
            self._part_or_fail(request, wrong)
        except Failure as failure:
            self._fail(request, failure)

    def _body(self, reply: Reply | Exception) -> bytes:
        """The answer's bytes, if it is one. Raises _Later where it is worth asking again."""
        name = self._oracle.card.id
        if isinstance(reply, RemoteUnavailable) and not reply.extra.get("timed_out"):
            raise _Later(reply)
        if isinstance(reply, Exception):
            raise reply
        if reply.status in _AGAIN:
            pause = reply.retry_after or 0.0
            why = f"{name} cannot answer now (status {reply.status})"
            raise _Later(RemoteUnavailable(why, retry_after=max(1, round(pause))), pause)
        if reply.status >= 500:
            raise RemoteUnavailable(f"{name} failed to answer (status {reply.status})")
        if reply.status >= 300:
            why = "; redirects are not followed" if reply.status < 400 else ""
            raise RemoteAnswer(f"{name} answered with status {reply.status} instead of scores{why}")
        return reply.body

    def _take(self, request: _Request, body: bytes) -> None:
        scores = self._oracle.protocol.scores(body, len(request.rows))
        for row, score in zip(request.rows, scores, strict=True):
            if isinstance(score, RemoteAnswer):
                self._failures.setdefault(self._owners[row], score)
            else:
                self._scores[row] = score

    def _part_or_fail(self, request: _Request, wrong: RemoteAnswer) -> None:
        """One job's rows must not fail for another's: ask again for each by itself."""
        owners = sorted(self._owners_of(request))
        if len(owners) == 1:
            self._fail(request, wrong)
            return
        for owner in owners:
            own = [row for row in request.rows if self._owners[row] == owner]
            self._waiting.append(_Request(range(own[0], own[-1] + 1)))


class _Later(Exception):  # noqa: N818 - it asks for patience
    """The request may be sent again, after a pause in seconds; otherwise this is why it failed."""

    def __init__(self, failure: Failure, pause: float = 0.0) -> None:
        super().__init__(failure.detail)
        self.failure = failure
        self.pause = pause


def _exchange(
    oracle: RemoteOracle,
    request: _Request,
    channel: Channel,
    images: Sequence[NDArray[np.float32]],
    arrived: queue.SimpleQueue[tuple[_Request, Reply | Exception]],
) -> None:
    try:
        arrived.put((request, oracle.post(channel, images)))
    except Exception as error:  # noqa: BLE001 - whatever goes wrong here is raised where it is waited for
        arrived.put((request, error))


def _cut(rows: range, size: int) -> list[_Request]:
    return [_Request(rows[at : at + size]) for at in range(0, len(rows), size)]


def _logits(scores: Sequence[Scores]) -> Tensor:
    return torch.from_numpy(np.stack(scores)).float()
