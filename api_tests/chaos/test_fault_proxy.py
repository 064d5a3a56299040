"""The proxy of the fault campaign fails according to its mode, and not otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from chaos.proxy import LATENCY_SECONDS, Mode, Proxy
from touchstone.errors import LedgerUnavailable
from touchstone.ledger import address
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Submission
from touchstone.settings import Settings
from touchstone.supervisor import valkey as embedded_valkey


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("p")
    valkey = embedded_valkey.start(home)
    yield home
    valkey.stop()


@pytest.fixture
def proxy(home: Path) -> Iterator[Proxy]:
    proxy = Proxy(address.socket_path(home))
    yield proxy
    proxy.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(proxy.url, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
        client.set("word", "x" * 100)
        yield client


def test_proxy_forwards_everything_without_a_fault(client: redis.Redis) -> None:
    long = "y" * 1_000_000
    client.set("long", long)
    assert client.get("long") == long.encode()


def test_reset_fault_breaks_connections_until_it_ends(proxy: Proxy, client: redis.Redis) -> None:
    with proxy.failing(Mode.RESET):
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                client.get("word")
    assert client.get("word")


def test_stall_fault_times_out_old_and_new_connections(proxy: Proxy, client: redis.Redis) -> None:
    with proxy.failing(Mode.STALL):
        for _ in range(2):
            with pytest.raises(redis.TimeoutError):
                client.get("word")
    assert client.get("word")


def test_connection_works_again_after_a_stalled_write(proxy: Proxy, home: Path) -> None:
    with redis.Redis.from_url(proxy.url, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
        client.set("late", "no")
        with proxy.failing(Mode.STALL), pytest.raises(redis.TimeoutError):
            client.set("late", "yes")
        client.ping()


def test_one_way_fault_loses_the_reply_but_not_the_request(proxy: Proxy, client: redis.Redis) -> None:
    client.set("count", 0)
    with proxy.failing(Mode.ONE_WAY), pytest.raises(redis.TimeoutError):
        client.incr("count")
    assert client.get("count") == b"1"


def test_latency_fault_delays_both_directions(proxy: Proxy, client: redis.Redis) -> None:
    begun = time.monotonic()
    with proxy.failing(Mode.LATENCY):
        client.get("word")
    assert time.monotonic() - begun >= 2 * LATENCY_SECONDS


def test_truncate_fault_breaks_the_connection_until_it_ends(proxy: Proxy, client: redis.Redis) -> None:
    with proxy.failing(Mode.TRUNCATE), pytest.raises(redis.ConnectionError):
        client.get("word")
    assert client.get("word")


@pytest.mark.parametrize("mode", [Mode.RESET, Mode.STALL, Mode.ONE_WAY, Mode.TRUNCATE])
def test_ledger_reports_each_fault_as_unavailable(proxy: Proxy, submission: Submission, mode: Mode) -> None:
    ledger = Ledger(proxy.url, Settings(redis_url=proxy.url))
    job, _ = ledger.accept(submission)
    with proxy.failing(mode), pytest.raises(LedgerUnavailable):
        ledger.read(job.id)
    assert ledger.read(job.id) == job
    ledger.close()
