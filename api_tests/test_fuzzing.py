"""Thousands of requests drawn from OpenAPI: none makes the service stumble, each is answered as it says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from fuzzing import PATIENT, PHASES, fuzz
from serving import Api, serving

from touchstone.settings import Settings

FEWEST = {"examples": 150, "coverage": 10_000, "fuzzing": 700, "stateful": 50}
"""Requests that each phase makes at least: far more than 5,000 together."""


@pytest.fixture(scope="module")
def patient(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    home = tmp_path_factory.mktemp("fuzzed")
    with serving(Settings(home=home, redis_url=valkey_server, **PATIENT)) as api:
        yield api


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_drawn_from_the_description_makes_it_stumble(patient: Api, phase: str) -> None:
    findings = fuzz(patient, [phase], examples=10, seed=20261122)
    print(findings.told())
    assert not findings.wrong, "\n\n".join(findings.wrong[:10])
    assert max(findings.statuses) < 500
    assert findings.cases.total() >= FEWEST[phase]
