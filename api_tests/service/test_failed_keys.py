"""Wrong keys: how many may come from an address, whose address that is, and who does not suffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from pydantic import ValidationError

from api_tests.service.test_api_keys import bearer, key_request
from api_tests.support.fake_service import Api, assert_problem, run_service
from service.state import failed_keys
from service.state.failed_keys import FailedKeys
from touchstone.settings import Settings

WRONG = f"ts_{'0' * 16}_{'0' * 64}"
Serve = Callable[..., Api]


@pytest.fixture
def serve(settings: Settings) -> Iterator[Serve]:
    """A service that has three keys of an address refused a minute."""
    with ExitStack() as running:

        def start(**changes: object) -> Api:
            told = {"require_keys": True, "refused_keys": 3, **changes}
            return running.enter_context(run_service(settings.model_copy(update=told)))

        yield start


def request_statuses(api: Api, count: int, *keys: str, client: str | None = None) -> list[int]:
    """How so many requests are answered, with these keys in turn."""
    headers = {} if client is None else {"X-Forwarded-For": client}
    return [
        api.client.get("/v1/jobs", headers=bearer(keys[place % len(keys)]) | headers).status_code
        for place in range(count)
    ]


def test_wrong_keys_are_rate_limited_by_address_while_good_keys_are_answered(serve: Serve) -> None:
    api = serve()
    good, late = (api.ledger.keys.create(key_request()).text for _ in range(2))
    assert request_statuses(api, 6, WRONG, good) == [401, 200] * 3
    response = api.client.get("/v1/jobs", headers=bearer("ts_x"))
    assert assert_problem(response, 429, "rate_limited")["limit"] == 3
    assert 15 < int(response.headers["Retry-After"]) <= 20
    assert request_statuses(api, 3, good, WRONG, late) == [200, 429, 200], (
        "one that was never seen before as well"
    )
    assert api.client.get("/v1/jobs").status_code == 401, "no key is no wrong key"
    assert api.client.get("/healthz").status_code == 200


def test_forwarded_for_is_ignored_unless_it_comes_from_a_known_proxy(serve: Serve) -> None:
    api = serve()
    assert [request_statuses(api, 1, WRONG, client=f"192.0.2.{n}") for n in range(4)] == [[401]] * 3 + [[429]]


def test_forwarded_for_of_a_known_proxy_separates_clients(serve: Serve) -> None:
    api = serve(proxies="10.0.0.0/8, 127.0.0.1")
    assert request_statuses(api, 4, WRONG, client="192.0.2.1") == [401] * 3 + [429]
    assert request_statuses(api, 1, WRONG, client="192.0.2.2") == [401]
    assert request_statuses(api, 1, WRONG, client="192.0.2.3, 192.0.2.1, 10.1.2.3") == [429], (
        "the last that is no proxy"
    )


@pytest.mark.parametrize("text", ["*", "proxy.internal", "10.0.0.1,", "10.0.0.1/8"])
def test_proxies_setting_refuses_what_is_no_address(text: str) -> None:
    with pytest.raises(ValidationError):
        Settings(proxies=text)


class Clock:
    """A clock that stands still until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_rate_limit_of_wrong_keys_refills_evenly() -> None:
    clock = Clock()
    three = FailedKeys(3, clock=clock)
    assert [three.record("192.0.2.1") for _ in range(5)] == [0, 0, 0, 20, 20], "what is refused costs nothing"
    clock.now += 15
    assert three.record("192.0.2.1") == pytest.approx(5)
    clock.now += 5
    assert [three.record("192.0.2.1") for _ in range(2)] == [0, 20]
    clock.now += 1000
    assert [three.record("192.0.2.1") for _ in range(4)] == [0, 0, 0, 20]


def test_ipv6_addresses_of_one_network_share_a_rate_limit() -> None:
    one = FailedKeys(1, clock=Clock())
    addresses = ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "fe80::1%lo", "", "")
    assert [one.record(address) > 0 for address in addresses] == [False, True, False, False, False, True]
    mapped = ("::ffff:192.0.2.1", "::ffff:192.0.2.2", "192.0.2.1")
    assert [one.record(address) > 0 for address in mapped] == [False, False, True]


def test_number_of_remembered_addresses_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_keys, "MAX_ADDRESSES", 2)
    one = FailedKeys(1, clock=Clock())
    assert [one.record(f"192.0.2.{n}") > 0 for n in (1, 2, 1, 3, 3, 1)] == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]
