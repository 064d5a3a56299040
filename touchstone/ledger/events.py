"""What happened to a job, and the channel on which changes are announced."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any, cast

import redis

from touchstone.errors import InvalidCursor
from touchstone.ledger.connection import ANSWER_SECONDS, reachable
from touchstone.ledger.records import Status
from touchstone.ledger.replies import Change, Event, News

CHANNEL = "ts:changed"
_PLACE = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
_LOOK_SECONDS = 0.5


def read_events(client: redis.Redis, job: str, after: str | None, limit: int) -> list[Event]:
    """A job's events after the place `after`, oldest first."""
    if after is not None and not _PLACE.fullmatch(after):
        raise InvalidCursor(f"Last-Event-ID: {after[:40]!r} is not the id of an event", field="Last-Event-ID")
    with reachable():
        entries: Any = client.xrange(f"ts:events:{job}", min=f"({after}" if after else "-", count=limit)
    return [Event(place, entry["type"], json.loads(entry["data"])) for place, entry in entries]


def _change(text: str) -> Change:
    job, status, version, news, tenant = text.split()
    return Change(job, cast(Status, status), int(version), cast(News, news), tenant)


class Watch:
    """Jobs as they change, for as long as it is open; `close` may be called from any thread.

    Iterating blocks until something changes, ends after `close`, and raises `LedgerUnavailable` where the
    connection breaks. What changed before the watch was open is not told: look once more after opening it.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pubsub = client.pubsub()  # type: ignore[no-untyped-call]
        self._open = True

    def __enter__(self) -> Watch:
        with reachable():
            self._pubsub.subscribe(CHANNEL)
            # The first message confirms the subscription: whatever changes from here on is heard.
            if self._pubsub.get_message(timeout=ANSWER_SECONDS) is None:
                self._pubsub.close()
                raise redis.TimeoutError
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._pubsub.close()

    def __iter__(self) -> Iterator[Change]:
        return (change for change in self.steadily() if change is not None)

    def steadily(self) -> Iterator[Change | None]:
        """Changes, and None for each half a second in which there was none."""
        while self._open:
            with reachable():
                message = self._pubsub.get_message(True, timeout=_LOOK_SECONDS)
            yield None if message is None else _change(message["data"])

    def close(self) -> None:
        """End the iteration within half a second."""
        self._open = False
