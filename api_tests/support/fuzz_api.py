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

from api_tests.support.fake_service import Api, data_url, png, serving, some_model
from api_tests.support.own_models import linear_onnx
from touchstone import logs
from touchstone.ledger.records import LOCAL
from touchstone.ledger.tenant_ledger import Holdings
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
ENDLESS = ("stream_all_events",)
PATIENT = {"lease": 600.0}
"""Settings for a worker that gives one sign of life and is alive for as long as anybody fuzzes."""


@dataclass
class Findings:
    """What was asked, how it was answered, and what should not have been."""

    cases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    undrawn: list[str] = field(default_factory=list)
    """Where Schemathesis itself failed to think of anything."""

    def note(self, event: events.EngineEvent) -> None:
        """Take in what the engine tells."""
        if isinstance(event, events.ScenarioFinished):
            answered = [one.response for one in event.recorder.interactions.values() if one.response]
            self.cases[event.phase.name] += len(answered)
            self.statuses.update(response.status_code for response in answered)
            self.wrong += _failures(event)
        elif isinstance(event, events.FatalError):
            self.wrong.append(repr(event.exception))
        elif isinstance(event, events.NonFatalError):
            answer_is_missing = isinstance(event.value, requests.RequestException)
            (self.wrong if answer_is_missing else self.undrawn).append(f"{event.label}: {event.value!r}")

    def told(self) -> str:
        """All of it in a line."""
        answers = dict(sorted(self.statuses.items()))
        told = f"{self.cases.total():,} requests {dict(self.cases)}, answers {answers}"
        return f"{told}, not drawn {self.undrawn}" if self.undrawn else told


def _failures(event: events.ScenarioFinished) -> Iterator[str]:
    for check in itertools.chain.from_iterable(event.recorder.checks.values()):
        if check.failure_info is not None:
            found = check.failure_info
            yield f"{event.label}: {check.name}: {found.failure}\n{found.code_sample[:2000]}"


def fuzz(
    api: Api, phases: Collection[str], *, examples: int, seed: int, without: Collection[str] = ()
) -> Findings:
    """Ask the service what these phases of Schemathesis think of; where they draw, so often an operation.

    Operations are left out by their ids.
    """
    api.ledger.beat("pretender", {"running": 0})
    description = f"{api.origin}/openapi.json"
    schema = schemathesis.openapi.from_url(description, config=_config(phases, examples, seed))
    findings = Findings()
    with _mixed_in(Reality(api)):
        for event in engine.from_schema(schema.exclude(operation_id=[*ENDLESS, *without])).execute():
            findings.note(event)
    return findings


def _config(phases: Collection[str], examples: int, seed: int) -> SchemathesisConfig:
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


class Reality:
    """Puts things that exist into half of the requests, which would hardly meet any by chance."""

    def __init__(self, api: Api) -> None:
        self._jobs = itertools.cycle([api.job()["id"] for _ in range(30)])
        self._endpoints, self._deliveries = _webhooks(api)
        self._turns = itertools.count()

    def mix_in(self, context: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
        """Change a request that is about to be sent."""
        if next(self._turns) % 2:
            return
        path = {
            "job": next(self._jobs),
            "model": some_model().id,
            "name": "adversarial.png",
            "endpoint": next(self._endpoints),
            "delivery": next(self._deliveries),
        }
        case.path_parameters.update({name: path[name] for name in path if name in case.path_parameters})
        if isinstance(case.body, dict):
            case.body = {**case.body, **self._body(case)}

    @staticmethod
    def _body(case: schemathesis.Case) -> dict[str, Any]:
        """What replaces parts of a body that has them."""
        form = case.media_type == "multipart/form-data"
        real = {
            "image": png() if form else data_url(png()),
            "model": some_model().id,
            "file": linear_onnx(),
        }
        return {name: real[name] for name in real if name in case.body}


def _webhooks(api: Api) -> tuple[Iterator[str], Iterator[str]]:
    """Endpoints that are told of little, and deliveries to them, over and over."""
    url, secret = "https://192.0.2.1/", new_secret()  # an address for documents, to which nothing is sent
    endpoints = Holdings.of(api.ledger, LOCAL).endpoints
    for one in endpoints.all():
        endpoints.forget(one.id)
    made = [endpoints.add(url, ["job.failed"], description="", secret=secret) for _ in range(10)]
    pings = [endpoints.ping(one.id).id for one in made]
    return itertools.cycle([one.id for one in made]), itertools.cycle(pings)


@contextmanager
def _mixed_in(reality: Reality) -> Iterator[None]:
    hook = partial(reality.mix_in)
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
            with serving(Settings(home=home, redis_url=valkey.url, **PATIENT)) as api:
                while time.monotonic() < end:
                    seed = secrets.randbits(32)
                    findings = fuzz(api, PHASES, examples=50, seed=seed)
                    print(json.dumps({"seed": seed, "told": findings.told(), "wrong": findings.wrong}))
                    if findings.wrong:
                        return 1
        finally:
            valkey.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
