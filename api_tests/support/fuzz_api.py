"""Requests drawn from what OpenAPI says of the service: some as it asks for them, some as it does not.

Run as a program, it goes on for so many minutes, with another seed each time (`make fuzz`).
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
from touchstone.supervisor import valkey as embedded

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
"""Settings for a worker that gives one sign of life and is alive for as long as anybody fuzzes."""


@dataclass
class FuzzReport:
    """What was asked, how it was answered, and what should not have been."""

    cases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    generation_errors: list[str] = field(default_factory=list)
    """Where Schemathesis itself failed to think of anything."""

    def record(self, event: events.EngineEvent) -> None:
        """Take in what the engine tells."""
        if isinstance(event, events.ScenarioFinished):
            answered = [one.response for one in event.recorder.interactions.values() if one.response]
            self.cases[event.phase.name] += len(answered)
            self.statuses.update(response.status_code for response in answered)
            self.failures += _list_failures(event)
        elif isinstance(event, events.FatalError):
            self.failures.append(repr(event.exception))
        elif isinstance(event, events.NonFatalError):
            answer_is_missing = isinstance(event.value, requests.RequestException)
            (self.failures if answer_is_missing else self.generation_errors).append(
                f"{event.label}: {event.value!r}"
            )

    def summarize(self) -> str:
        """All of it in a line."""
        answers = dict(sorted(self.statuses.items()))
        told = f"{self.cases.total():,} requests {dict(self.cases)}, answers {answers}"
        return f"{told}, not drawn {self.generation_errors}" if self.generation_errors else told


def _list_failures(event: events.ScenarioFinished) -> Iterator[str]:
    for check in itertools.chain.from_iterable(event.recorder.checks.values()):
        if check.failure_info is not None:
            found = check.failure_info
            yield f"{event.label}: {check.name}: {found.failure}\n{found.code_sample[:2000]}"


def fuzz(
    api: Api, phases: Collection[str], *, examples: int, seed: int, excluded: Collection[str] = ()
) -> FuzzReport:
    """Ask the service what these phases of Schemathesis think of; where they draw, so often an operation.

    Operations are left out by their ids.
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
    """Puts things that exist into half of the requests, which would hardly meet any by chance."""

    def __init__(self, api: Api) -> None:
        self._jobs = itertools.cycle([api.run_job()["id"] for _ in range(30)])
        self._endpoints, self._deliveries = _create_webhooks(api)
        self._requests = itertools.count()

    def insert(self, context: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
        """Change a request that is about to be sent."""
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
        """What replaces parts of a body that has them."""
        form = case.media_type == "multipart/form-data"
        real = {
            "image": png() if form else data_url(png()),
            "model": sample_manifest().id,
            "file": linear_onnx(),
        }
        return {name: real[name] for name in real if name in case.body}


def _create_webhooks(api: Api) -> tuple[Iterator[str], Iterator[str]]:
    """Endpoints that are told of little, and deliveries to them, over and over."""
    url, secret = "https://192.0.2.1/", new_secret()  # an address for documents, to which nothing is sent
    endpoints = TenantLedger.of(api.ledger, LOCAL).endpoints
    for one in endpoints.all():
        endpoints.delete(one.id)
    made = [endpoints.add(url, ["job.failed"], description="", secret=secret) for _ in range(10)]
    pings = [endpoints.ping(one.id).id for one in made]
    return itertools.cycle([one.id for one in made]), itertools.cycle(pings)


@contextmanager
def _insert_real_values(reality: RealValues) -> Iterator[None]:
    hook = partial(reality.insert)
    schemathesis.hook("before_call")(hook)
    try:
        yield
    finally:
        schemathesis.hooks.unregister(hook)


def main(minutes: float) -> int:
    """Go on until something is wrong or the time is over."""
    logs.configure("error")
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        valkey = embedded.start(home)
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
