"""The stream of a job's events: whole, live, resumed, and ended."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from fastapi import routing

from api_tests.support.fake_service import Api, Work, fail, succeed
from api_tests.support.wait import SECONDS


@dataclass(frozen=True)
class Event:
    id: str
    type: str
    data: dict[str, Any]


def read(response: httpx2.Response) -> Iterator[Event]:
    """The events of a stream; comments are left out, as the standard wants."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if not line and fields:
            yield Event(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def events(api: Api, path: str, after: str | None = None) -> list[Event]:
    headers = {} if after is None else {"Last-Event-ID": after}
    with api.client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        return list(read(response))


def test_the_whole_story_of_a_job_that_ended(api: Api) -> None:
    story = events(api, api.job()["links"]["events"])
    types = [event.type for event in story]
    assert types == ["status", "status", "progress", "metric", "status", "completed"]
    statuses = [event.data["status"] for event in story if event.type == "status"]
    assert statuses == ["queued", "running", "succeeded"]
    assert story[2].data == {"done": 1, "total": 2}
    assert story[3].data == {"loss": 0.5}
    assert len({event.id for event in story}) == len(story)


def test_events_come_as_they_happen(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routers.events.RECHECK_SECONDS", 10 * SECONDS)
    go_on = threading.Event()

    def slowly(work: Work) -> None:
        work.report(1, 3)
        go_on.wait(SECONDS)
        succeed(work)

    with api.worker.doing(slowly):
        path = api.submit(wait=None).json()["links"]["events"]
        with api.client.stream("GET", path) as response:
            stream = read(response)
            while next(stream).type != "progress":
                pass
            began = time.monotonic()
            go_on.set()
            rest = [event.type for event in stream]
    assert rest[-1] == "completed"
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("place", range(5))
def test_a_stream_goes_on_after_the_last_event_received(api: Api, place: int) -> None:
    path = api.job()["links"]["events"]
    story = events(api, path)
    assert events(api, path, after=story[place].id) == story[place + 1 :]


def test_after_the_end_there_is_nothing_to_come_back_for(api: Api) -> None:
    path = api.job()["links"]["events"]
    last = events(api, path)[-1].id
    response = api.client.get(path, headers={"Last-Event-ID": last})
    assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize("last", ["x", "1-2-3", "-1", "9" * 40, "$", "1-", "é"])
def test_a_malformed_last_event_id_is_a_problem(api: Api, last: str) -> None:
    path = api.job()["links"]["events"]
    response = api.client.get(path, headers={"Last-Event-ID": last.encode()})
    assert (response.status_code, response.json()["field"]) == (422, "Last-Event-ID")


def test_a_failed_and_a_canceled_job_end_their_streams(api: Api) -> None:
    with api.worker.doing(fail):
        failed = api.job()["links"]["events"]
    with api.worker.resting():
        job = api.submit(wait=None).json()
        api.client.post(job["links"]["cancel"])
    for path, status in ((failed, "failed"), (job["links"]["events"], "canceled")):
        last = events(api, path)[-1]
        assert (last.type, last.data["status"]) == ("completed", status)


def test_a_stream_ends_with_a_job_that_is_deleted(api: Api) -> None:
    with api.worker.resting():
        job = api.submit(wait=None).json()
        with api.client.stream("GET", job["links"]["events"]) as response:
            stream = read(response)
            assert next(stream).data["status"] == "queued"
            api.client.delete(job["links"]["self"])
            assert list(stream) == []


def test_an_idle_stream_is_kept_alive(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_PING_INTERVAL", 0.05)
    with api.worker.resting():
        path = api.submit(wait=None).json()["links"]["events"]
        with api.client.stream("GET", path) as response:
            for line in response.iter_lines():
                if line.startswith(":"):
                    break
    assert line == ": ping"


def test_a_hundred_streams_at_once(api: Api) -> None:
    go_on = threading.Event()

    def slowly(work: Work) -> None:
        go_on.wait(SECONDS)
        succeed(work)

    ended = []

    def follow(path: str) -> None:
        ended.append(events(api, path)[-1].type)

    with api.worker.doing(slowly):
        path = api.submit(wait=None).json()["links"]["events"]
        followers = [threading.Thread(target=follow, args=(path,)) for _ in range(100)]
        for follower in followers:
            follower.start()
        time.sleep(0.5)
        go_on.set()
        for follower in followers:
            follower.join(SECONDS)
    assert ended == ["completed"] * 100
