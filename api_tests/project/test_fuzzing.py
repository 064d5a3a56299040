"""Thousands of requests generated from OpenAPI: none causes a server error, and each response is as
described.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from api_tests.support.fake_service import Api, run_service
from api_tests.support.fuzz_api import LONG_LEASE, PHASES, fuzz
from touchstone.methods import catalogue
from touchstone.settings import Settings

MIN_REQUESTS = {"examples": 50, "coverage": 5_000, "fuzzing": 200, "stateful": 30}
"""Minimum numbers of requests of the phases."""

ATTACKS = sorted(name for name, method in catalogue().items() if method.kind == "attack")
SKIPPED_OPERATIONS = [f"run_{name}" for index, name in enumerate(ATTACKS) if index % 6]
"""Five of six attacks: all their forms are built in one way."""


@pytest.fixture(scope="module")
def fuzzed_api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    home = tmp_path_factory.mktemp("fuzzed")
    with run_service(Settings(home=home, redis_url=valkey_server, **LONG_LEASE)) as api:
        yield api


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings(
    "ignore::hypothesis.errors.HypothesisDeprecationWarning"
)  # from Schemathesis itself
@pytest.mark.parametrize("phase", PHASES)
def test_requests_generated_from_openapi_cause_no_server_error(fuzzed_api: Api, phase: str) -> None:
    findings = fuzz(fuzzed_api, [phase], examples=6, seed=20261122, excluded=SKIPPED_OPERATIONS)
    print(findings.summarize())
    assert not findings.failures, "\n\n".join(findings.failures[:10])
    assert max(findings.statuses) < 500
    assert findings.cases.total() >= MIN_REQUESTS[phase]
