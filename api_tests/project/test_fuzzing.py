"""Thousands of requests drawn from OpenAPI: none makes the service stumble, each is answered as it says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from api_tests.support.fake_service import Api, run_service
from api_tests.support.fuzz_api import LONG_LEASE, PHASES, fuzz
from touchstone.methods import catalogue
from touchstone.settings import Settings

MIN_REQUESTS = {"examples": 50, "coverage": 5_000, "fuzzing": 200, "stateful": 30}
"""Requests that each phase makes at least."""

ATTACKS = sorted(name for name, method in catalogue().items() if method.kind == "attack")
SKIPPED_OPERATIONS = [f"run_{name}" for place, name in enumerate(ATTACKS) if place % 3]
"""Two attacks of three: all their forms are made in one way."""


@pytest.fixture(scope="module")
def patient(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    home = tmp_path_factory.mktemp("fuzzed")
    with run_service(Settings(home=home, redis_url=valkey_server, **LONG_LEASE)) as api:
        yield api


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # of Schemathesis' own
@pytest.mark.parametrize("phase", PHASES)
def test_requests_generated_from_openapi_cause_no_server_error(patient: Api, phase: str) -> None:
    findings = fuzz(patient, [phase], examples=6, seed=20261122, excluded=SKIPPED_OPERATIONS)
    print(findings.summarize())
    assert not findings.failures, "\n\n".join(findings.failures[:10])
    assert max(findings.statuses) < 500
    assert findings.cases.total() >= MIN_REQUESTS[phase]
