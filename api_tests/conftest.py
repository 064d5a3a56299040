"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import redis

from api_tests.support.fake_service import Api, run_service
from api_tests.support.webhook_jobs import add_endpoint
from api_tests.support.webhook_receiver import Receiver, run_receiver
from service import schemas
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import ImageRef, ModelRef, Submission
from touchstone.ledger.webhooks import dispatcher, signatures
from touchstone.ledger.webhooks.dispatcher import WebhookDispatcher
from touchstone.ledger.webhooks.endpoints import WebhookEndpoint
from touchstone.net.outbound import OutboundClient
from touchstone.settings import Settings
from touchstone.supervisor import valkey as embedded_valkey


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing may be missing: what would be skipped for want of a tool or a library fails."""
    report = yield
    if report.skipped and os.environ.get("TOUCHSTONE_CI"):
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Valkey for all tests of this process, or the server of the test matrix. It does not wait for the
    disk: no test cuts its power.
    """
    if other := os.environ.get("TOUCHSTONE_TEST_LEDGER"):
        yield other
        return
    server = embedded_valkey.start(tmp_path_factory.mktemp("valkey"))
    with redis.Redis.from_url(server.url) as client:
        client.config_set("appendfsync", "no")
    yield server.url
    server.stop()


@pytest.fixture
def valkey(valkey_server: str) -> str:
    """The address of an empty Valkey."""
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    return valkey_server


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    """Settings of an empty home and an empty Valkey."""
    return Settings(home=tmp_path, redis_url=valkey)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    """An empty ledger."""
    assert settings.redis_url
    ledger = Ledger(settings.redis_url, settings)
    yield ledger
    ledger.close()


@pytest.fixture
def server(valkey: str) -> Iterator[redis.Redis]:
    """A client of the Valkey, for tests that look behind the ledger or prepare its state."""
    with connect(valkey) as client:
        yield client


@pytest.fixture(scope="session")
def submission() -> Submission:
    """A small attack, as the service gives it to the ledger."""
    return Submission(
        kind="attack",
        method="pgd",
        model=ModelRef(id="digits", digest="sha256:" + "0" * 64),
        image=ImageRef(digest="sha256:" + "1" * 64, width=8, height=8, channels=1),
        parameters={"norm": "linf", "eps": 8 / 255, "steps": 10},
    )


@pytest.fixture(scope="module")
def api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service with a fake worker, for all tests of a module."""
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    with run_service(Settings(home=tmp_path_factory.mktemp("api"), redis_url=valkey_server)) as api:
        yield api


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks that answers 204."""
    with run_receiver() as receiver:
        yield receiver


@pytest.fixture
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look soon, try again at once."""
    monkeypatch.setattr(dispatcher, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(signatures, "RETRY_DELAYS", (0,) * len(signatures.RETRY_DELAYS))


@pytest.fixture
def endpoint(ledger: Ledger, receiver: Receiver) -> WebhookEndpoint:
    """The receiver, registered for the end of every job."""
    return add_endpoint(ledger, receiver)


@pytest.fixture
def start_dispatcher(ledger: Ledger) -> Iterator[Callable[..., WebhookDispatcher]]:
    """Start to deliver, to loopback by default."""
    started: list[WebhookDispatcher] = []

    def start(outgoing: OutboundClient | None = None) -> WebhookDispatcher:
        show = lambda job: schemas.show(job).model_dump(mode="json")  # noqa: E731
        one = WebhookDispatcher(ledger.outbox, outgoing or OutboundClient("127.0.0.0/8"), show)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.stop()
