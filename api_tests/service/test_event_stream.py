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

from api_tests.support.fake_service import Api, FakeJob, fail, succeed
from api_tests.support.wait import TIMEOUT_SECONDS


@dataclass(frozen=True)
class Event:
    id: str
    type: str
    data: dict[str, Any]


def read_events(response: httpx2.Response) -> Iterator[Event]:
    """The events of a stream; comments are left out, as the standard wants."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if not line and fields:
            yield Event(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def collect_events(api: Api, path: str, after: str | None = None) -> list[Event]:
    headers = {} if after is None else {"Last-Event-ID": after}
    with api.client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        return list(read_events(response))


def test_stream_of_an_ended_job_replays_all_its_events(api: Api) -> None:
    story = collect_events(api, api.run_job()["links"]["events"])
    types = [event.type for event in story]
    assert types == ["status", "status", "progress", "metric", "status", "completed"]
    statuses = [event.data["status"] for event in story if event.type == "status"]
    assert statuses == ["queued", "running", "succeeded"]
    assert story[2].data == {"done": 1, "total": 2}
    assert story[3].data == {"loss": 0.5}
    assert len({event.id for event in story}) == len(story)


def test_events_are_sent_as_they_happen(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routers.events.RECHECK_SECONDS", 10 * TIMEOUT_SECONDS)
    go_on = threading.Event()

    def slowly(work: FakeJob) -> None:
        work.report(1, 3)
        go_on.wait(TIMEOUT_SECONDS)
        succeed(work)

    with api.worker.with_behavior(slowly):
        path = api.submit(wait=None).json()["links"]["events"]
        with api.client.stream("GET", path) as response:
            stream = read_events(response)
            while next(stream).type != "progress":
                pass
            began = time.monotonic()
            go_on.set()
            rest = [event.type for event in stream]
    assert rest[-1] == "completed"
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("place", range(5))
def test_stream_resumes_after_the_last_event_id(api: Api, place: int) -> None:
    path = api.run_job()["links"]["events"]
    story = collect_events(api, path)
    assert collect_events(api, path, after=story[place].id) == story[place + 1 :]


def test_stream_resumed_after_the_last_event_is_204(api: Api) -> None:
    path = api.run_job()["links"]["events"]
    last = collect_events(api, path)[-1].id
    response = api.client.get(path, headers={"Last-Event-ID": last})
    assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize("last", ["x", "1-2-3", "-1", "9" * 40, "$", "1-", "é"])
def test_malformed_last_event_id_is_422(api: Api, last: str) -> None:
    path = api.run_job()["links"]["events"]
    response = api.client.get(path, headers={"Last-Event-ID": last.encode()})
    assert (response.status_code, response.json()["field"]) == (422, "Last-Event-ID")


def test_streams_end_when_their_job_failed_or_was_canceled(api: Api) -> None:
    with api.worker.with_behavior(fail):
        failed = api.run_job()["links"]["events"]
    with api.worker.pause():
        job = api.submit(wait=None).json()
        api.client.post(job["links"]["cancel"])
    for path, status in ((failed, "failed"), (job["links"]["events"], "canceled")):
        last = collect_events(api, path)[-1]
        assert (last.type, last.data["status"]) == ("completed", status)


def test_stream_ends_when_its_job_is_deleted(api: Api) -> None:
    with api.worker.pause():
        job = api.submit(wait=None).json()
        with api.client.stream("GET", job["links"]["events"]) as response:
            stream = read_events(response)
            assert next(stream).data["status"] == "queued"
            api.client.delete(job["links"]["self"])
            assert list(stream) == []


def test_idle_stream_is_kept_alive_with_pings(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_PING_INTERVAL", 0.05)
    with api.worker.pause():
        path = api.submit(wait=None).json()["links"]["events"]
        with api.client.stream("GET", path) as response:
            for line in response.iter_lines():
                if line.startswith(":"):
                    break
    assert line == ": ping"


def test_hundred_concurrent_streams_all_receive_the_end(api: Api) -> None:
    go_on = threading.Event()

    def slowly(work: FakeJob) -> None:
        go_on.wait(TIMEOUT_SECONDS)
        succeed(work)

    ended = []

    def follow(path: str) -> None:
        ended.append(collect_events(api, path)[-1].type)

    with api.worker.with_behavior(slowly):
        path = api.submit(wait=None).json()["links"]["events"]
        followers = [threading.Thread(target=follow, args=(path,)) for _ in range(100)]
        for follower in followers:
            follower.start()
        time.sleep(0.5)
        go_on.set()
        for follower in followers:
            follower.join(TIMEOUT_SECONDS)
    assert ended == ["completed"] * 100
