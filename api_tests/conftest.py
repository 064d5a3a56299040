"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from serving import Api, serving

from touchstone import embedded
from touchstone.jobs.ledger import Ledger
from touchstone.jobs.record import ImageRef, ModelRef, Submission
from touchstone.jobs.scripts import connect
from touchstone.settings import Settings


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Valkey for all tests of this process."""
    server = embedded.start(tmp_path_factory.mktemp("valkey"))
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
    """Settings of a home of one's own over an empty Valkey."""
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
    """The Valkey itself, for tests that look behind the ledger or set its stage."""
    with connect(valkey) as client:
        yield client


@pytest.fixture
def submission() -> Submission:
    """A small attack, as the service would hand it to the ledger."""
    return Submission(
        kind="attack",
        method="pgd",
        model=ModelRef(id="digits", digest="sha256:" + "0" * 64),
        image=ImageRef(digest="sha256:" + "1" * 64, width=8, height=8, channels=1),
        parameters={"norm": "linf", "eps": 8 / 255, "steps": 10},
    )


@pytest.fixture(scope="module")
def api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service with a pretended worker, for all tests of a module."""
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    with serving(Settings(home=tmp_path_factory.mktemp("api"), redis_url=valkey_server)) as api:
        yield api
