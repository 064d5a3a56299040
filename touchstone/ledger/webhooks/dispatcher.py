"""Sending what receivers of webhooks are to be told, so that none waits for another."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from touchstone.errors import AddressRefused, RemoteUnavailable
from touchstone.ledger.records import Job
from touchstone.ledger.webhooks import signatures
from touchstone.ledger.webhooks.deliveries import AttemptError, Outcome
from touchstone.ledger.webhooks.outbox import MOST_AT_ONCE, Outbox, Sending
from touchstone.logs import get_logger
from touchstone.net.outbound import Outgoing

PAUSE_SECONDS = 0.5
ANSWER_SECONDS = 15.0
STOP_SECONDS = 1.0
UNWANTED = 410

_log = get_logger("deliverer")

Show = Callable[[Job], Mapping[str, Any]]
"""A job as the API shows it."""


class Deliverer:
    """Sends what is due: twice a second, and whenever a thread becomes free. As many processes as like may.

    A thread for each, since a name's resolution cannot be ended. What a thread that dies was sending is sent
    again, under the same id, by whoever looks after its lease has run out.
    """

    def __init__(self, outbox: Outbox, outgoing: Outgoing, show: Show) -> None:
        self._outbox = outbox
        self._outgoing = outgoing
        self._show = show
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._under_way: dict[tuple[str, int], str] = {}
        self._thread = threading.Thread(target=self._run, name="deliverer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to send nothing more; what is under way is left to itself."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._send_due()
            except Exception as error:  # noqa: BLE001 - the ledger, of whatever kind: tried again soon
                _log.warning("nothing delivered", reason=f"{type(error).__name__}: {error}")
            self._wake.wait(PAUSE_SECONDS)
            self._wake.clear()

    def _send_due(self) -> None:
        under_way = Counter(list(self._under_way.values()))
        room = MOST_AT_ONCE - under_way.total()
        for sending in self._outbox.claim(under_way, most=room) if room > 0 else ():
            self._begin(sending)

    def _begin(self, sending: Sending) -> None:
        self._under_way[_key(sending)] = sending.receiver
        thread = threading.Thread(target=self._deliver, args=[sending], name="delivery", daemon=True)
        try:
            thread.start()
        except BaseException:  # no more threads are to be had, or no memory
            del self._under_way[_key(sending)]
            raise

    def _deliver(self, sending: Sending) -> None:
        try:
            self._note(sending, *self._post(sending))
        except Exception as error:  # noqa: BLE001 - a thread's end: its lease runs out, and another sends
            _log.warning("not delivered", delivery=sending.delivery.id, reason=type(error).__name__)
        finally:
            del self._under_way[_key(sending)]
            self._wake.set()

    def _post(self, sending: Sending) -> tuple[Outcome, float | None]:
        """How it went, and the seconds after which the receiver wants to be asked again, if it said so."""
        began = time.monotonic()

        def outcome(**told: Any) -> Outcome:
            return Outcome(ms=round((time.monotonic() - began) * 1000), **told)

        body = _body(sending, self._show)
        signed = signatures.headers(sending.delivery.id, sending.at // 1000, body, sending.signers)
        try:
            channel = self._outgoing.channel(sending.delivery.url)
            reply = channel.post(body, {**_HEADERS, **signed}, seconds=ANSWER_SECONDS, most=None)
        except AddressRefused:
            return outcome(error="address_refused"), None
        except RemoteUnavailable as error:
            return outcome(error="timed_out" if error.extra.get("timed_out") else "unreachable"), None
        return outcome(status=reply.status, error=_error_of(reply.status)), reply.retry_after

    def _note(self, sending: Sending, outcome: Outcome, retry_after: float | None) -> None:
        unwanted = outcome.status == UNWANTED
        pause = None if unwanted else signatures.pause_after(sending.tries + 1, retry_after)
        heard = self._outbox.note(sending, outcome, pause=pause, unwanted=unwanted)
        _log.info(
            "delivered" if outcome.error is None else "not delivered",
            delivery=sending.delivery.id,
            type=sending.delivery.type,
            status=outcome.status,
            error=outcome.error,
            heard=heard,
        )


_HEADERS = {"Content-Type": "application/json", "User-Agent": "Touchstone-Webhooks"}


def _key(sending: Sending) -> tuple[str, int]:
    return sending.delivery.id, sending.claim


def _error_of(status: int) -> AttemptError | None:
    if 200 <= status < 300:
        return None
    return "redirected" if 300 <= status < 400 else "refused"


def _body(sending: Sending, show: Show) -> bytes:
    delivery = sending.delivery
    data = show(sending.job) if sending.job else {"endpoint": delivery.endpoint}
    at = delivery.created_at.isoformat().replace("+00:00", "Z")
    return json.dumps({"type": delivery.type, "timestamp": at, "data": data}).encode()
