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

from api_tests.support.fake_service import Api, Work, serving, succeed
from api_tests.support.wait import SECONDS, wait_until
from service.state import broadcaster
from service.state.broadcaster import Item, News, Reader
from service.state.job_waiters import Waiting
from touchstone.ledger.records import LOCAL, Progress
from touchstone.ledger.replies import Change
from touchstone.settings import Settings

Event = tuple[str, dict[str, Any]]


def read(response: httpx2.Response) -> Iterator[Event]:
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
        yield read(response)


def until(events: Iterator[Event], wanted: Callable[[str, dict[str, Any]], bool]) -> list[Event]:
    """The events up to the one that is wanted."""
    found = []
    for event in events:
        found.append(event)
        if wanted(*event):
            return found
    raise AssertionError(f"the stream ended: {found}")


def ended(kind: str, data: dict[str, Any]) -> bool:
    return kind == "job" and data["status"] in ("succeeded", "canceled", "failed")


def waiting_of(api: Api) -> Waiting:
    """What the service under test hears with."""
    waiting: Waiting = api.server._backend.waiting
    return waiting


def test_the_life_of_a_job(api: Api) -> None:
    go_on = threading.Event()

    def slowly(work: Work) -> None:
        work.report(1, 2, loss=0.5)
        go_on.wait(SECONDS)
        succeed(work)

    with stream(api) as events, api.worker.doing(slowly):
        with api.worker.resting():
            job = api.submit(wait=None).json()
            assert next(events) == ("job", job)
        assert next(events)[1]["status"] == "running"
        assert next(events) == ("progress", {"items": [{"id": job["id"], "done": 1, "total": 2}]})
        go_on.set()
        assert next(events) == ("job", api.client.get(job["links"]["self"]).json())
        api.client.delete(job["links"]["self"])
        assert next(events) == ("deleted", {"id": job["id"]})


def test_all_jobs_of_all_kinds_are_heard_of(api: Api) -> None:
    with stream(api) as events, api.worker.resting():
        jobs = [api.submit(path, wait=None).json() for path in ("/v1/attacks/fgsm", "/v1/predictions")]
        told = [next(events)[1] for _ in jobs]  # now: of each job, a reader gets the latest only
        api.client.post("/v1/jobs/cancel", json={"jobs": [job["id"] for job in jobs]})
        told += [next(events)[1] for _ in jobs]
    assert {(job["id"], job["status"]) for job in told} == {
        (job["id"], status) for job in jobs for status in ("queued", "canceled")
    }


def test_progress_comes_once_a_second_with_those_that_moved(api: Api) -> None:
    """Fifty reports in two and a half seconds, and metrics without end: no more words of it than seconds."""

    def busily(work: Work) -> None:
        for step in range(50):
            work.report(step + 1, 50)
            time.sleep(0.05)
        for _ in range(20):
            work.report(50, 50, loss=0.1)
            time.sleep(0.05)
        succeed(work)

    began = time.monotonic()
    with stream(api) as events, api.worker.doing(busily):
        api.submit(wait=None)
        told = until(events, ended)
    words = [data["items"] for kind, data in told if kind == "progress"]
    assert 2 <= len(words) <= time.monotonic() - began + 1
    done = [item["done"] for items in words for item in items]
    assert done == sorted(set(done))


def test_two_hundred_readers_are_one_question_to_the_ledger(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, questions, heard = [], [], []
    read_job, ask = api.ledger.read, api.ledger.progress
    monkeypatch.setattr(api.ledger, "read", lambda job: reads.append(job) or read_job(job))
    monkeypatch.setattr(api.ledger, "progress", lambda jobs: questions.append(jobs) or ask(jobs))
    ready = threading.Barrier(201)

    def follow() -> None:
        with client.stream("GET", "/v1/events") as response:
            ready.wait(SECONDS)
            heard.append(until(read(response), ended))

    readers = [threading.Thread(target=follow) for _ in range(200)]
    many = httpx2.Limits(max_connections=200)
    with httpx2.Client(base_url=api.client.base_url, timeout=SECONDS, limits=many) as client:
        for reader in readers:
            reader.start()
        ready.wait(SECONDS)
        api.submit(wait=None)
        for reader in readers:
            reader.join(SECONDS)
    assert len(heard) == 200
    assert all(events[-1] == heard[0][-1] for events in heard)
    assert len(reads) == 3
    assert len(questions) < 5


def test_without_readers_nothing_is_asked_nor_kept(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    room = waiting_of(api).news
    wait_until(lambda: not room._readers)
    reads = []
    read_job = api.ledger.read
    monkeypatch.setattr(api.ledger, "read", lambda job: reads.append(job) or read_job(job))
    api.submit(wait=None)
    wait_until(lambda: api.ledger.counts()["running"] == api.ledger.counts()["queued"] == 0)
    assert reads == []
    assert not room._moved


def test_who_leaves_is_forgotten(api: Api) -> None:
    room = waiting_of(api).news
    with stream(api) as events:
        wait_until(lambda: len(room._readers) == 1)  # until those are gone who left before
        api.job()
        until(events, ended)
    wait_until(lambda: not room._readers)


def test_an_idle_stream_is_kept_alive(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_PING_INTERVAL", 0.05)
    with api.client.stream("GET", "/v1/events") as response:
        assert next(response.iter_lines()) == ": ping"


def test_a_stream_ends_where_something_may_have_been_missed(api: Api, valkey_server: str) -> None:
    """The connection on which changes are heard breaks: the client has to read the list anew."""
    with stream(api) as events, redis.Redis.from_url(valkey_server) as client:
        assert client.client_kill_filter(_type="pubsub") == 1
        assert list(events) == []
    with stream(api) as events:
        wait_until(lambda: client.pubsub_numsub("ts:changed")[0][1])
        api.job()
        assert until(events, ended)


def test_whatever_goes_wrong_with_one_change_the_next_are_heard_of(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, hear = waiting_of(api).news, News.hear
    faults = [RuntimeError("not foreseen")]

    def stumble(self: News, change: Change) -> bool:
        if faults:
            raise faults.pop()
        return hear(self, change)

    monkeypatch.setattr(News, "hear", stumble)
    with stream(api):
        api.submit(wait=None)
        wait_until(lambda: not room._readers)  # let go, for they have missed something
    with stream(api) as events:
        api.job()
        assert until(events, ended)


def test_a_stream_ends_with_the_service(settings: Settings) -> None:
    over = threading.Event()
    with serving(settings) as api, stream(api) as events:

        def follow() -> None:
            assert [kind for kind, _ in events] == []
            over.set()

        follower = threading.Thread(target=follow)
        follower.start()
        time.sleep(0.2)
        assert not over.is_set()
        api.server.should_exit = True
        follower.join(SECONDS)
    assert over.is_set()


def test_of_each_job_a_slow_reader_gets_only_the_latest() -> None:
    async def slowly() -> list[Item | None]:
        reader = Reader(LOCAL)
        for round_ in range(1000):
            reader.hear("a", Item("job", f"a {round_}"))
            reader.hear("b", Item("job", f"b {round_}"))
            reader.hear_progress({"c": Progress(done=round_, total=1000), "d": Progress(done=1, total=2)})
        reader.hear("d", Item("deleted", "d"))
        assert len(reader._jobs) + len(reader._progress) == 4
        return [await reader.next() for _ in range(4)]

    *jobs, progress = asyncio.run(slowly())
    assert jobs == [Item("job", "a 999"), Item("job", "b 999"), Item("deleted", "d")]
    assert progress == Item("progress", '{"items": [{"id": "c", "done": 999, "total": 1000}]}')


def test_who_is_too_far_behind_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcaster, "MOST_PENDING", 3)

    async def never() -> None:
        reader = Reader(LOCAL)
        for job in "abcd":
            assert not reader.over
            reader.hear(job, Item("job", job))
        reader.hear("e", Item("job", "e"))
        reader.hear_progress({"e": Progress()})
        assert (reader._jobs, reader._progress) == ({}, {})
        assert await reader.next() is None

    asyncio.run(never())


def test_a_status_says_how_far_the_job_is_too() -> None:
    """What had moved before it is not told again after it."""
    asked: list[set[str]] = []

    class Counting:
        def progress(self, jobs: set[str]) -> dict[str, Progress]:
            asked.append(jobs)
            return {}

    async def told() -> None:
        room = broadcaster.News(Counting())  # type: ignore[arg-type]
        room.start(asyncio.get_running_loop())
        with room.reader(LOCAL):
            assert [room.hear(Change(job, "running", 3, "progress")) for job in "ab"] == [False, False]
            assert not room.hear(Change("a", "running", 4, "metric"))
            assert room.hear(Change("a", "succeeded", 5))
            assert not room.hear(Change("c", "deleted", 0))
            room.tick()
            room.tick()

    asyncio.run(told())
    assert asked == [{"b"}]


def test_who_comes_while_the_service_ends_is_let_go_at_once() -> None:
    async def late() -> None:
        room = broadcaster.News(ledger=None)  # type: ignore[arg-type]  # nothing is asked of it
        room.close()
        with room.reader(LOCAL) as reader:
            assert await reader.next() is None
        assert not room.hear(Change("a", "queued", 1))

    asyncio.run(late())
