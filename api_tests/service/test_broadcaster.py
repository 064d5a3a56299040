"""The stream of what happens to all jobs: to one reader, to many, to a slow one, and its end."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import redis
from fastapi import routing

from api_tests.support.fake_service import Api, FakeJob, run_service, succeed
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from service.state import broadcaster
from service.state.broadcaster import Broadcaster, ServerEvent, Subscriber
from service.state.job_waiters import JobWaiters
from touchstone.ledger.records import LOCAL, Progress
from touchstone.ledger.replies import JobChange
from touchstone.settings import Settings

Event = tuple[str, dict[str, Any]]


def read_events(response: httpx2.Response) -> Iterator[Event]:
    """The events of a stream without the comments."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if not line and fields:
            yield fields["event"], json.loads(fields["data"])
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


@contextmanager
def stream(api: Api) -> Iterator[Iterator[Event]]:
    with api.client.stream("GET", "/v1/events") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        yield read_events(response)


def read_until(events: Iterator[Event], wanted: Callable[[str, dict[str, Any]], bool]) -> list[Event]:
    """The events up to the one that is wanted."""
    found = []
    for event in events:
        found.append(event)
        if wanted(*event):
            return found
    raise AssertionError(f"the stream ended: {found}")


def is_job_end(kind: str, data: dict[str, Any]) -> bool:
    return kind == "job" and data["status"] in ("succeeded", "canceled", "failed")


def waiters_of(api: Api) -> JobWaiters:
    """What the service under test hears with."""
    waiting: JobWaiters = api.server._backend.waiters
    return waiting


def test_stream_shows_a_job_from_queued_to_deleted(api: Api) -> None:
    go_on = threading.Event()

    def slowly(work: FakeJob) -> None:
        work.report(1, 2, loss=0.5)
        go_on.wait(TIMEOUT_SECONDS)
        succeed(work)

    with stream(api) as events, api.worker.with_behavior(slowly):
        with api.worker.pause():
            job = api.submit(wait=None).json()
            assert next(events) == ("job", job)
        assert next(events)[1]["status"] == "running"
        assert next(events) == ("progress", {"items": [{"id": job["id"], "done": 1, "total": 2}]})
        go_on.set()
        assert next(events) == ("job", api.client.get(job["links"]["self"]).json())
        api.client.delete(job["links"]["self"])
        assert next(events) == ("deleted", {"id": job["id"]})


def test_stream_shows_changes_of_all_jobs_of_all_kinds(api: Api) -> None:
    with stream(api) as events, api.worker.pause():
        jobs = [api.submit(path, wait=None).json() for path in ("/v1/attacks/fgsm", "/v1/predictions")]
        told = [next(events)[1] for _ in jobs]  # now: of each job, a reader gets the latest only
        api.client.post("/v1/jobs/cancel", json={"jobs": [job["id"] for job in jobs]})
        told += [next(events)[1] for _ in jobs]
    assert {(job["id"], job["status"]) for job in told} == {
        (job["id"], status) for job in jobs for status in ("queued", "canceled")
    }


def test_progress_is_sent_at_most_once_a_second_and_never_repeated(api: Api) -> None:
    """Fifty reports in two and a half seconds, and metrics without end: no more words of it than seconds."""

    def busily(work: FakeJob) -> None:
        for step in range(50):
            work.report(step + 1, 50)
            time.sleep(0.05)
        for _ in range(20):
            work.report(50, 50, loss=0.1)
            time.sleep(0.05)
        succeed(work)

    began = time.monotonic()
    with stream(api) as events, api.worker.with_behavior(busily):
        api.submit(wait=None)
        told = read_until(events, is_job_end)
    words = [data["items"] for kind, data in told if kind == "progress"]
    assert 2 <= len(words) <= time.monotonic() - began + 1
    done = [item["done"] for items in words for item in items]
    assert done == sorted(set(done))


def test_two_hundred_subscribers_share_the_reads_of_the_ledger(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, questions, heard = [], [], []
    read_job, ask = api.ledger.read, api.ledger.progress
    monkeypatch.setattr(api.ledger, "read", lambda job: reads.append(job) or read_job(job))
    monkeypatch.setattr(api.ledger, "progress", lambda jobs: questions.append(jobs) or ask(jobs))
    ready = threading.Barrier(201)

    def follow() -> None:
        with client.stream("GET", "/v1/events") as response:
            ready.wait(TIMEOUT_SECONDS)
            heard.append(read_until(read_events(response), is_job_end))

    readers = [threading.Thread(target=follow) for _ in range(200)]
    many = httpx2.Limits(max_connections=200)
    with httpx2.Client(base_url=api.client.base_url, timeout=TIMEOUT_SECONDS, limits=many) as client:
        for reader in readers:
            reader.start()
        ready.wait(TIMEOUT_SECONDS)
        api.submit(wait=None)
        for reader in readers:
            reader.join(TIMEOUT_SECONDS)
    assert len(heard) == 200
    assert all(events[-1] == heard[0][-1] for events in heard)
    assert len(reads) == 3
    assert len(questions) < 5


def test_broadcaster_reads_and_keeps_nothing_without_subscribers(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = waiters_of(api).broadcaster
    wait_until(lambda: not room._subscribers)
    reads = []
    read_job = api.ledger.read
    monkeypatch.setattr(api.ledger, "read", lambda job: reads.append(job) or read_job(job))
    api.submit(wait=None)
    wait_until(lambda: api.ledger.count_by_status()["running"] == api.ledger.count_by_status()["queued"] == 0)
    assert reads == []
    assert not room._pending_progress


def test_subscriber_that_disconnects_is_removed(api: Api) -> None:
    room = waiters_of(api).broadcaster
    with stream(api) as events:
        wait_until(lambda: len(room._subscribers) == 1)  # until those are gone who left before
        api.run_job()
        read_until(events, is_job_end)
    wait_until(lambda: not room._subscribers)


def test_idle_stream_is_kept_alive_with_pings(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_PING_INTERVAL", 0.05)
    with api.client.stream("GET", "/v1/events") as response:
        assert next(response.iter_lines()) == ": ping"


def test_stream_ends_when_the_pubsub_connection_breaks(api: Api, valkey_server: str) -> None:
    """The connection on which changes are heard breaks: the client has to read the list anew."""
    with stream(api) as events, redis.Redis.from_url(valkey_server) as client:
        assert client.client_kill_filter(_type="pubsub") == 1
        assert list(events) == []
    with stream(api) as events:
        wait_until(lambda: client.pubsub_numsub("ts:changed")[0][1])
        api.run_job()
        assert read_until(events, is_job_end)


def test_error_in_one_change_ends_streams_but_later_changes_are_broadcast(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, hear = waiters_of(api).broadcaster, Broadcaster.note
    faults = [RuntimeError("not foreseen")]

    def stumble(self: Broadcaster, change: JobChange) -> bool:
        if faults:
            raise faults.pop()
        return hear(self, change)

    monkeypatch.setattr(Broadcaster, "note", stumble)
    with stream(api):
        api.submit(wait=None)
        wait_until(lambda: not room._subscribers)  # let go, for they have missed something
    with stream(api) as events:
        api.run_job()
        assert read_until(events, is_job_end)


def test_stream_ends_when_the_service_stops(settings: Settings) -> None:
    over = threading.Event()
    with run_service(settings) as api, stream(api) as events:

        def follow() -> None:
            assert [kind for kind, _ in events] == []
            over.set()

        follower = threading.Thread(target=follow)
        follower.start()
        time.sleep(0.2)
        assert not over.is_set()
        api.server.should_exit = True
        follower.join(TIMEOUT_SECONDS)
    assert over.is_set()


def test_slow_subscriber_gets_only_the_latest_event_of_each_job() -> None:
    async def slowly() -> list[ServerEvent | None]:
        reader = Subscriber(LOCAL)
        for round_ in range(1000):
            reader.note("a", ServerEvent("job", f"a {round_}"))
            reader.note("b", ServerEvent("job", f"b {round_}"))
            reader.note_progress({"c": Progress(done=round_, total=1000), "d": Progress(done=1, total=2)})
        reader.note("d", ServerEvent("deleted", "d"))
        assert len(reader._jobs) + len(reader._progress) == 4
        return [await reader.next() for _ in range(4)]

    *jobs, progress = asyncio.run(slowly())
    assert jobs == [ServerEvent("job", "a 999"), ServerEvent("job", "b 999"), ServerEvent("deleted", "d")]
    assert progress == ServerEvent("progress", '{"items": [{"id": "c", "done": 999, "total": 1000}]}')


def test_subscriber_too_far_behind_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcaster, "MAX_PENDING", 3)

    async def never() -> None:
        reader = Subscriber(LOCAL)
        for job in "abcd":
            assert not reader.closed
            reader.note(job, ServerEvent("job", job))
        reader.note("e", ServerEvent("job", "e"))
        reader.note_progress({"e": Progress()})
        assert (reader._jobs, reader._progress) == ({}, {})
        assert await reader.next() is None

    asyncio.run(never())


def test_status_change_supersedes_pending_progress_of_its_job() -> None:
    """What had moved before it is not told again after it."""
    asked: list[set[str]] = []

    class Counting:
        def progress(self, jobs: set[str]) -> dict[str, Progress]:
            asked.append(jobs)
            return {}

    async def told() -> None:
        room = broadcaster.Broadcaster(Counting())  # type: ignore[arg-type]
        room.start(asyncio.get_running_loop())
        with room.subscribe(LOCAL):
            assert [room.note(JobChange(job, "running", 3, "progress")) for job in "ab"] == [False, False]
            assert not room.note(JobChange("a", "running", 4, "metric"))
            assert room.note(JobChange("a", "succeeded", 5))
            assert not room.note(JobChange("c", "deleted", 0))
            room.flush_progress()
            room.flush_progress()

    asyncio.run(told())
    assert asked == [{"b"}]


def test_subscriber_after_close_ends_at_once() -> None:
    async def late() -> None:
        room = broadcaster.Broadcaster(ledger=None)  # type: ignore[arg-type]  # nothing is asked of it
        room.close()
        with room.subscribe(LOCAL) as reader:
            assert await reader.next() is None
        assert not room.note(JobChange("a", "queued", 1))

    asyncio.run(late())


def test_subscriber_far_behind_with_long_events_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcaster, "MAX_PENDING_LETTERS", 100)

    async def lag() -> list[bool]:
        subscriber = Subscriber(LOCAL)
        states = []
        for job, letters in (("a", 60), ("a", 90), ("b", 10), (None, 0), ("c", 90), ("d", 1)):
            if job is None:
                await subscriber.next()
            else:
                subscriber.note(job, ServerEvent("job", "x" * letters))
            states.append(subscriber.closed)
        return states

    assert asyncio.run(lag()) == [False, False, False, False, False, True]
