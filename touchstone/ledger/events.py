"""Events of a job, and the channel on which changes are published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any, cast

import redis

from touchstone.errors import InvalidCursor
from touchstone.ledger.connection import ANSWER_SECONDS, map_redis_errors
from touchstone.ledger.records import Status
from touchstone.ledger.replies import ChangeKind, Event, JobChange

CHANNEL = "ts:changed"
_EVENT_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
_POLL_SECONDS = 0.5


def read_events(client: redis.Redis, job: str, after: str | None, limit: int) -> list[Event]:
    """A job's events after the event `after`, oldest first; long after its end only changes of status."""
    if after is not None and not _EVENT_ID.fullmatch(after):
        raise InvalidCursor(f"Last-Event-ID: {after[:40]!r} is not the id of an event", field="Last-Event-ID")
    with map_redis_errors():
        entries: Any = client.xrange(f"ts:events:{job}", min=f"({after}" if after else "-", count=limit)
        kept: Any = None if entries else client.hget(f"ts:job:{job}", "events")
    if kept:
        return _read_kept(kept, after)[:limit]
    return [Event(name, entry["type"], json.loads(entry["data"])) for name, entry in entries]


def _read_kept(text: str, after: str | None) -> list[Event]:
    """What is kept of the events of an ended job."""
    begin, events = _position(after) if after else (-1, 0), list[Event]()
    change: dict[str, Any] = {}
    for name, *values in json.loads(text):
        if values:
            change = dict(zip(("status", "attempts", "cancel_requested", "version"), values, strict=True))
            events.append(Event(name, "status", change))
        else:
            end = {"status": change["status"], "version": change["version"]}
            events.append(Event(name, "completed", end))
    return [event for event in events if _position(event.id) > begin]


def _position(event: str) -> tuple[int, int]:
    """Milliseconds and number of an event's id."""
    milliseconds, _, number = event.partition("-")
    return int(milliseconds), int(number or 0)


def _parse_change(text: str) -> JobChange:
    job, status, version, kind, tenant = text.split()
    return JobChange(job, cast(Status, status), int(version), cast(ChangeKind, kind), tenant)


class Watch:
    """Jobs as they change, for as long as it is open; `close` may be called from any thread.

    Iterating blocks until something changes, ends after `close`, and raises `LedgerUnavailable` where the
    connection breaks. What changed before the watch was open is not reported: read once more after opening
    it.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pubsub = client.pubsub()  # type: ignore[no-untyped-call]
        self._open = True

    def __enter__(self) -> Watch:
        with map_redis_errors():
            self._pubsub.subscribe(CHANNEL)
            # The first message confirms the subscription: every change from here on is received.
            if self._pubsub.get_message(timeout=ANSWER_SECONDS) is None:
                self._pubsub.close()
                raise redis.TimeoutError
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._pubsub.close()

    def __iter__(self) -> Iterator[JobChange]:
        return (change for change in self.poll() if change is not None)

    def poll(self) -> Iterator[JobChange | None]:
        """Changes, and None for each half a second in which there was none."""
        while self._open:
            with map_redis_errors():
                message = self._pubsub.get_message(True, timeout=_POLL_SECONDS)
            yield None if message is None else _parse_change(message["data"])

    def close(self) -> None:
        """End the iteration within half a second."""
        self._open = False
