"""Requests generated from the OpenAPI document of the service: valid and invalid ones.

Run as a program, it repeats for so many minutes with new seeds (`make fuzz`).
"""

from __future__ import annotations

import itertools
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import requests
import schemathesis
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events

from api_tests.support.fake_service import Api, data_url, png, run_service, sample_manifest
from api_tests.support.own_models import linear_onnx
from touchstone import logs
from touchstone.ledger.records import LOCAL
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.ledger.webhooks.signatures import new_secret
from touchstone.settings import Settings
from touchstone.supervisor import valkey as embedded_valkey

PHASES = ("examples", "coverage", "fuzzing", "stateful")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
STREAMING_OPERATIONS = ("stream_all_events",)
LONG_LEASE = {"lease": 600.0}
"""Settings under which a worker is alive for a whole run after one heartbeat."""


@dataclass
class FuzzReport:
    """The number of requests and statuses, and the failures."""

    cases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    generation_errors: list[str] = field(default_factory=list)
    """Operations for which Schemathesis could generate no request."""

    def record(self, event: events.EngineEvent) -> None:
        """Count an event of the engine."""
        if isinstance(event, events.ScenarioFinished):
            responses = [one.response for one in event.recorder.interactions.values() if one.response]
            self.cases[event.phase.name] += len(responses)
            self.statuses.update(response.status_code for response in responses)
            self.failures += _list_failures(event)
        elif isinstance(event, events.FatalError):
            self.failures.append(repr(event.exception))
        elif isinstance(event, events.NonFatalError):
            lacks_response = isinstance(event.value, requests.RequestException)
            (self.failures if lacks_response else self.generation_errors).append(
                f"{event.label}: {event.value!r}"
            )

    def summarize(self) -> str:
        """All counts in one line."""
        statuses = dict(sorted(self.statuses.items()))
        text = f"{self.cases.total():,} requests {dict(self.cases)}, statuses {statuses}"
        return f"{text}, not generated {self.generation_errors}" if self.generation_errors else text


def _list_failures(event: events.ScenarioFinished) -> Iterator[str]:
    for check in itertools.chain.from_iterable(event.recorder.checks.values()):
        if check.failure_info is not None:
            info = check.failure_info
            yield f"{event.label}: {check.name}: {info.failure}\n{info.code_sample[:2000]}"


def fuzz(
    api: Api, phases: Collection[str], *, examples: int, seed: int, excluded: Collection[str] = ()
) -> FuzzReport:
    """Send the requests of these phases of Schemathesis; random ones `examples` times for each operation.

    `excluded` are the ids of operations to skip.
    """
    api.ledger.workers.heartbeat("pretender", {"running": 0})
    description = f"{api.origin}/openapi.json"
    schema = schemathesis.openapi.from_url(description, config=_build_config(phases, examples, seed))
    findings = FuzzReport()
    with _insert_real_values(RealValues(api)):
        for event in engine.from_schema(
            schema.exclude(operation_id=[*STREAMING_OPERATIONS, *excluded])
        ).execute():
            findings.record(event)
    return findings


def _build_config(phases: Collection[str], examples: int, seed: int) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "continue-on-failure": True,
            "request-timeout": 20,
            "generation": {"max-examples": examples},
            "checks": {"enabled": False, **{name: {"enabled": True} for name in CHECKS}},
            "phases": {name: {"enabled": name in phases} for name in PHASES},
        }
    )


class RealValues:
    """Puts ids of existing resources into half of the requests, which would not guess any."""

    def __init__(self, api: Api) -> None:
        self._jobs = itertools.cycle([api.run_job()["id"] for _ in range(30)])
        self._endpoints, self._deliveries = _create_webhooks(api)
        self._requests = itertools.count()

    def insert(self, context: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
        """Change a request before it is sent."""
        if next(self._requests) % 2:
            return
        path = {
            "job": next(self._jobs),
            "model": sample_manifest().id,
            "name": "adversarial.png",
            "endpoint": next(self._endpoints),
            "delivery": next(self._deliveries),
        }
        case.path_parameters.update({name: path[name] for name in path if name in case.path_parameters})
        if isinstance(case.body, dict):
            case.body = {**case.body, **self._real_fields(case)}

    @staticmethod
    def _real_fields(case: schemathesis.Case) -> dict[str, Any]:
        """Real values of fields of this body."""
        form = case.media_type == "multipart/form-data"
        real = {
            "image": png() if form else data_url(png()),
            "model": sample_manifest().id,
            "file": linear_onnx(),
        }
        return {name: real[name] for name in real if name in case.body}


def _create_webhooks(api: Api) -> tuple[Iterator[str], Iterator[str]]:
    """Ids of endpoints with few events, and of deliveries to them, in endless cycles."""
    url, secret = "https://192.0.2.1/", new_secret()  # an address reserved for documentation
    endpoints = TenantLedger.of(api.ledger, LOCAL).endpoints
    for one in endpoints.all():
        endpoints.delete(one.id)
    created = [endpoints.add(url, ["job.failed"], description="", secret=secret) for _ in range(10)]
    pings = [endpoints.ping(one.id).id for one in created]
    return itertools.cycle([one.id for one in created]), itertools.cycle(pings)


@contextmanager
def _insert_real_values(values: RealValues) -> Iterator[None]:
    hook = partial(values.insert)
    schemathesis.hook("before_call")(hook)
    try:
        yield
    finally:
        schemathesis.hooks.unregister(hook)


def main(minutes: float) -> int:
    """Repeat until a failure or the end of the time."""
    logs.configure("error")
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        valkey = embedded_valkey.start(home)
        try:
            with run_service(Settings(home=home, redis_url=valkey.url, **LONG_LEASE)) as api:
                while time.monotonic() < end:
                    seed = secrets.randbits(32)
                    findings = fuzz(api, PHASES, examples=50, seed=seed)
                    print(
                        json.dumps({"seed": seed, "told": findings.summarize(), "wrong": findings.failures})
                    )
                    if findings.failures:
                        return 1
        finally:
            valkey.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
