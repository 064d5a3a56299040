"""Logs: one JSON line per event, from every logger and for every request; no secrets and no uploads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import PngImagePlugin

from api_tests.service.test_service_process import Process
from api_tests.support.fake_service import data_url, encode_image, gradient_image, png, sample_manifest
from api_tests.workers.test_workers import WorkerCluster, wait_until
from touchstone.ledger.records import Submission

CANARY = "swordfish"
LINES = f'{CANARY}\r\n\x1b[31m{{"level": "forged"}}\u2028\x00'
"""Text that would break a line, color a terminal or look like another event if it were not escaped."""

LOG_CALLS = (
    "logs.get_logger('x').error(text);"
    "logs.get_logger('x').error('it', field=text);"
    "logs.get_logger('x').error('it', field=[ValueError(text), text]);"
    "logging.getLogger('x').error('%s', text);"
    "logging.getLogger('x').error('it', exc_info=ValueError(text))"
)
"""All ways to put a text into a log."""


def run_and_read_log(code: str) -> list[str]:
    """The log lines of a program that runs this code."""
    prefix = "import logging, threading, warnings; from touchstone import logs; logs.configure('debug');"
    command = [sys.executable, "-c", prefix + code]
    ended = subprocess.run(command, capture_output=True, timeout=100, check=False)
    return ended.stderr.decode().splitlines()


def test_logs_warnings_and_uncaught_errors_are_json_lines() -> None:
    lines = run_and_read_log(
        "logs.get_logger('ours').info('one', n=1);"
        "logging.getLogger('theirs').error('two %s', 2);"
        "warnings.warn('three', UserWarning);"
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join();"
        "Odd = type('Odd', (), {'__del__': lambda self: 1 / 0}); Odd();"
        "raise ValueError('six')"
    )
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [event["logger"] for event in events] == ["ours", "theirs", "py.warnings", *["uncaught"] * 3]
    assert [event["level"] for event in events] == ["info", "error", "warning", *["critical"] * 3]
    assert all("ZeroDivisionError" in event["exception"] for event in events[3:5])
    assert "six" in events[5]["exception"]


def test_control_characters_do_not_break_a_log_line() -> None:
    lines = run_and_read_log(f"text = {LINES!r}; {LOG_CALLS}")
    assert [json.loads(line)["level"] for line in lines] == ["error"] * 5
    assert all(CANARY in line and line.isascii() and line.isprintable() for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {CANARY}",
        f"{{'authorization': 'basic {CANARY}'}}",
        f"redis://user:{CANARY}@host/0",
        f"https://{CANARY}@host/path",
        f"GET https://host/path?key={CANARY}",
        f"whsec_{CANARY * 4}",
        f"ts_{CANARY * 4}",
    ],
)
def test_secrets_are_redacted_from_log_lines(text: str) -> None:
    lines = run_and_read_log(f"text = {text!r}; {LOG_CALLS}")
    assert len(lines) == 5
    assert CANARY not in "".join(lines)


def test_log_line_length_is_bounded() -> None:
    [line] = run_and_read_log("logging.getLogger('x').error('x' * 10**6 + 'end')")
    assert len(line) < 20_000
    assert json.loads(line)["event"].endswith("end")


SECRET_HEADERS = {
    "Authorization": f"Bearer {CANARY}",
    "Idempotency-Key": CANARY,
    "Cookie": f"session={CANARY}",
    "User-Agent": CANARY,
    "Referer": f"https://x.example/?key={CANARY}",
    "X-Request-Id": f"{CANARY} with spaces",
    "X-Api-Key": CANARY,
}
URL = f"https://u:{CANARY}@x.invalid/{CANARY}?{CANARY}"


def marked_png() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", LINES.replace("\x00", ""))
    return encode_image(gradient_image(), pnginfo=info)


def send_canaries(client: httpx2.Client) -> None:
    """Put the canary into everything that a client can send."""
    send_submissions(client)
    send_models(client)
    client.post("/v1/webhooks", json={"url": URL, "secret": CANARY})
    for path in ("/", "/v1/jobs", f"/v1/jobs/{CANARY}", f"/{CANARY}/%0d%0a%1b[31m", "/v1/models"):
        client.get(path, params={"status": CANARY, "cursor": LINES, CANARY: CANARY})
        client.request(CANARY.upper(), path)


def send_submissions(client: httpx2.Client) -> None:
    model, files = {"model": sample_manifest().id}, {"image": (LINES, marked_png())}
    for path in ("/v1/attacks/pgd", "/v1/predictions", f"/v1/attacks/{CANARY}"):
        for fields in ({}, {"seed": LINES}, {"model": LINES}, {LINES: LINES}, {"webhook": URL}):
            client.post(path, data={**model, **fields}, files=files)
    body = {**model, "image": data_url(png()), CANARY: {CANARY: [LINES]}}
    client.post("/v1/attacks/pgd", json=body)
    client.post("/v1/attacks/pgd", content=LINES.encode(), headers={"Content-Type": "application/json"})


def send_models(client: httpx2.Client) -> None:
    size = {"height": 8, "width": 8}
    manifest = {"id": "own", "classes": ["a", LINES], "provenance": CANARY, "input": size}
    for file, text in ((b"\x80\x04", CANARY), (b"", json.dumps(manifest))):
        files = {"file": (LINES, file + LINES.encode())}
        client.post("/v1/models", files=files, data={"manifest": text})
    remote = {"protocol": "json", "request": "$tensor", "answer": "x[*]", "answers": "logits"}
    client.post("/v1/models", json={**manifest, "remote": {"url": URL, **remote}})


@pytest.fixture(scope="module")
def service(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOUCHSTONE_LOG_LEVEL", "debug")
        patch.setenv("TOUCHSTONE_SECRET_ACME", CANARY)
        process = Process(valkey_server, tmp_path_factory.mktemp("service"))
    yield process
    process.stop()


def test_service_logs_leak_nothing_that_clients_send(service: Process) -> None:
    with httpx2.Client(base_url=service.client.base_url, headers=SECRET_HEADERS) as client:
        send_canaries(client)
        with suppress(httpx2.TransportError):
            client.get("/", headers={"X": "y" * 100_000 + CANARY})
    ok = service.client.get("/healthz", headers={"X-Request-Id": "last"})
    assert ok.status_code == 200
    wait_until(lambda: service.lines[-1].get("request_id") == "last")
    assert len(service.lines) > 30
    assert CANARY not in json.dumps(service.lines).lower()
    assert {"level", "event", "logger", "timestamp"} <= set.intersection(*map(set, service.lines))


def test_request_id_links_the_request_log_to_its_job(service: Process) -> None:
    form: dict[str, Any] = {"data": {"model": sample_manifest().id}, "files": {"image": ("a.png", png())}}
    ok = service.client.post("/v1/predictions", headers={"X-Request-Id": "mine"}, **form)
    assert ok.status_code == 202, ok.text

    def read_lines() -> list[dict[str, Any]]:
        return [line for line in service.lines if line.get("request_id") == "mine"]

    wait_until(lambda: [line["event"] for line in read_lines()][-1:] == ["request"])
    mine = read_lines()
    assert [line["event"] for line in mine] == ["accepted", "request"]
    assert (mine[0]["job"], mine[0]["tenant"], mine[1]["tenant"]) == (ok.json()["id"], "local", "local")


def test_worker_logs_leak_no_job_parameters_or_secrets(
    tmp_path: Path, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME", CANARY)
    cluster = WorkerCluster(tmp_path, submission)
    try:
        cluster.start_worker()
        ended = [cluster.accept(note=LINES, then=then) for then in ("", "fail", "nan")]
        wait_until(lambda: all(cluster.read(job).finished_at for job in ended))
        wait_until(lambda: cluster.log().count("a job ended") == 3)
    finally:
        cluster.close()
    events = [json.loads(line) for line in (tmp_path / "workers.log").read_text().splitlines()]
    assert CANARY not in json.dumps(events)
    for job in ended:
        about = [event for event in events if event.get("job") == job]
        assert "a job ended" in [event["event"] for event in about]
        assert all(event["tenant"] == "local" and event["attempt"] == 1 for event in about)
