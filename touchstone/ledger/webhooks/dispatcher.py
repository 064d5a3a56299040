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
from touchstone.ledger.webhooks.deliveries import AttemptError, AttemptOutcome
from touchstone.ledger.webhooks.outbox import MAX_IN_FLIGHT, ClaimedDelivery, Outbox
from touchstone.logs import get_logger
from touchstone.net.outbound import OutboundClient

POLL_SECONDS = 0.5
ANSWER_SECONDS = 15.0
STOP_SECONDS = 1.0
GONE = 410

_log = get_logger("deliverer")

RenderJob = Callable[[Job], Mapping[str, Any]]
"""A job as the API shows it."""


class WebhookDispatcher:
    """Sends what is due: twice a second, and whenever a thread becomes free. As many processes as like may.

    A thread for each, since a name's resolution cannot be ended. What a thread that dies was sending is sent
    again, under the same id, by whoever looks after its lease has run out.
    """

    def __init__(self, outbox: Outbox, outgoing: OutboundClient, render_job: RenderJob) -> None:
        self._outbox = outbox
        self._outgoing = outgoing
        self._render_job = render_job
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._in_flight: dict[tuple[str, int], str] = {}
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
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _send_due(self) -> None:
        under_way = Counter(list(self._in_flight.values()))
        room = MAX_IN_FLIGHT - under_way.total()
        for sending in self._outbox.claim(under_way, limit=room) if room > 0 else ():
            self._start_delivery(sending)

    def _start_delivery(self, claimed: ClaimedDelivery) -> None:
        self._in_flight[_claim_key(claimed)] = claimed.receiver
        thread = threading.Thread(target=self._deliver, args=[claimed], name="delivery", daemon=True)
        try:
            thread.start()
        except BaseException:  # no more threads are to be had, or no memory
            del self._in_flight[_claim_key(claimed)]
            raise

    def _deliver(self, claimed: ClaimedDelivery) -> None:
        try:
            self._record(claimed, *self._post(claimed))
        except Exception as error:  # noqa: BLE001 - a thread's end: its lease runs out, and another sends
            _log.warning("not delivered", delivery=claimed.delivery.id, reason=type(error).__name__)
        finally:
            del self._in_flight[_claim_key(claimed)]
            self._wake.set()

    def _post(self, claimed: ClaimedDelivery) -> tuple[AttemptOutcome, float | None]:
        """How it went, and the seconds after which the receiver wants to be asked again, if it said so."""
        began = time.monotonic()

        def outcome(**told: Any) -> AttemptOutcome:
            return AttemptOutcome(ms=round((time.monotonic() - began) * 1000), **told)

        body = _build_payload(claimed, self._render_job)
        signed = signatures.build_headers(
            claimed.delivery.id, claimed.at // 1000, body, claimed.signing_secrets
        )
        try:
            channel = self._outgoing.channel(claimed.delivery.url)
            reply = channel.post(body, {**_HEADERS, **signed}, seconds=ANSWER_SECONDS, max_bytes=None)
        except AddressRefused:
            return outcome(error="address_refused"), None
        except RemoteUnavailable as error:
            return outcome(error="timed_out" if error.extra.get("timed_out") else "unreachable"), None
        return outcome(status=reply.status, error=_classify_status(reply.status)), reply.retry_after

    def _record(self, claimed: ClaimedDelivery, outcome: AttemptOutcome, retry_after: float | None) -> None:
        unwanted = outcome.status == GONE
        pause = None if unwanted else signatures.retry_delay(claimed.tries + 1, retry_after)
        heard = self._outbox.record(claimed, outcome, retry_after=pause, gone=unwanted)
        _log.info(
            "delivered" if outcome.error is None else "not delivered",
            delivery=claimed.delivery.id,
            type=claimed.delivery.type,
            status=outcome.status,
            error=outcome.error,
            heard=heard,
        )


_HEADERS = {"Content-Type": "application/json", "User-Agent": "Touchstone-Webhooks"}


def _claim_key(claimed: ClaimedDelivery) -> tuple[str, int]:
    return claimed.delivery.id, claimed.claim


def _classify_status(status: int) -> AttemptError | None:
    if 200 <= status < 300:
        return None
    return "redirected" if 300 <= status < 400 else "refused"


def _build_payload(claimed: ClaimedDelivery, render_job: RenderJob) -> bytes:
    delivery = claimed.delivery
    data = render_job(claimed.job) if claimed.job else {"endpoint": delivery.endpoint}
    at = delivery.created_at.isoformat().replace("+00:00", "Z")
    return json.dumps({"type": delivery.type, "timestamp": at, "data": data}).encode()
