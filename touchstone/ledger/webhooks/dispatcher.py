"""Sending deliveries of webhooks, so that none waits for another."""

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
from touchstone.ledger.webhooks.outbox import MAX_IN_FLIGHT, RESERVE, ClaimedDelivery, Outbox
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
    """Sends what is due: twice a second, and whenever a thread becomes free. Any number of processes may run
    one.

    Each delivery has a thread, because the resolution of a name cannot be ended. What a thread that dies was
    sending is sent again under the same id, by any process, once its lease has expired.
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
        """Start sending."""
        self._thread.start()

    def stop(self) -> None:
        """Start no further delivery; those in flight are not waited for."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._send_due()
            except Exception as error:  # noqa: BLE001 - any error of the ledger: tried again soon
                _log.warning("nothing delivered", reason=f"{type(error).__name__}: {error}")
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _send_due(self) -> None:
        in_flight = Counter(list(self._in_flight.values()))
        if in_flight.total() < MAX_IN_FLIGHT + RESERVE:
            for claimed in self._outbox.claim(in_flight):
                self._start_delivery(claimed)

    def _start_delivery(self, claimed: ClaimedDelivery) -> None:
        self._in_flight[_claim_key(claimed)] = claimed.receiver
        thread = threading.Thread(target=self._deliver, args=[claimed], name="delivery", daemon=True)
        try:
            thread.start()
        except BaseException:  # no thread or no memory left
            del self._in_flight[_claim_key(claimed)]
            raise

    def _deliver(self, claimed: ClaimedDelivery) -> None:
        try:
            self._record(claimed, *self._post(claimed))
        except Exception as error:  # noqa: BLE001 - the thread ends: its lease expires, and another sends
            _log.warning("not delivered", delivery=claimed.delivery.id, reason=type(error).__name__)
        finally:
            del self._in_flight[_claim_key(claimed)]
            self._wake.set()

    def _post(self, claimed: ClaimedDelivery) -> tuple[AttemptOutcome, float | None]:
        """The outcome, and the seconds of the response's Retry-After, if it has one."""
        began = time.monotonic()

        def outcome(**fields: Any) -> AttemptOutcome:
            return AttemptOutcome(ms=round((time.monotonic() - began) * 1000), **fields)

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
        gone = outcome.status == GONE
        delay = None if gone else signatures.retry_delay(claimed.tries + 1, retry_after)
        recorded = self._outbox.record(claimed, outcome, retry_after=delay, gone=gone)
        _log.info(
            "delivered" if outcome.error is None else "not delivered",
            delivery=claimed.delivery.id,
            type=claimed.delivery.type,
            status=outcome.status,
            error=outcome.error,
            heard=recorded,
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
