"""Every operation that OpenAPI names, asked by everybody who may not, and by who may."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from api_tests.service.test_access import APP, PUBLIC_PATHS
from api_tests.support.fake_service import MODEL_PROBE, Api, data_url, png, run_service
from api_tests.support.own_models import build_manifest, linear_onnx
from touchstone.ledger.api_keys import IMPLIED_SCOPES, KeyRequest, Scope
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.registration.examination import complete_manifest
from touchstone.settings import Settings

OPENAPI: dict[str, Any] = APP.openapi()
OPERATIONS = {
    operation["operationId"]: (verb.upper(), path, operation)
    for path, verbs in OPENAPI["paths"].items()
    for verb, operation in verbs.items()
}
GUARDED = {name: found for name, found in OPERATIONS.items() if "security" in found[2]}
ENDLESS = ("stream_all_events",)


def path_parameters(path: str) -> set[str]:
    """The names in a path's braces."""
    return set(re.findall(r"\{(\w+)\}", path))


def scope_of(name: str) -> Scope:
    """The scope that OpenAPI says an operation needs."""
    [scheme] = GUARDED[name][2]["security"]
    [scope] = scheme["key"]
    assert scope in IMPLIED_SCOPES
    return scope  # type: ignore[no-any-return]


UNKNOWN = {
    "job": "0" * 32,
    "id": "none-net",
    "model": "none-net",
    "version": "0" * 64,
    "endpoint": "wh_" + "0" * 24,
    "delivery": "msg_" + "0" * 40,
}
"""Names that nothing has."""

OWNED = {name for name, (_, path, _) in GUARDED.items() if path_parameters(path) & set(UNKNOWN)} - {
    "revoke_key"
}
"""Operations on something that is a tenant's; keys are the operator's."""


@dataclass(frozen=True)
class GuardedService:
    """A service that wants keys, with a job, a model and a webhook of one tenant, and keys of all kinds."""

    api: Api
    keys: Mapping[str, str]
    things: Mapping[str, str]

    def call(self, name: str, who: str, things: Mapping[str, str] | None = None) -> Answer:
        """How somebody's call of an operation is answered."""
        verb, path, operation = OPERATIONS[name]
        headers = {} if who == "nobody" else {"Authorization": f"Bearer {self.keys[who]}"}
        body = {"json": {}} if "requestBody" in operation else {}
        with self.api.client.stream(
            verb, fill_path(path, things or self.things), headers=headers, **body
        ) as response:
            endless = name in ENDLESS and response.status_code == 200
            text = "" if endless else response.read().decode(errors="replace")
        problem = json.loads(text) if "problem" in response.headers.get("content-type", "") else {}
        return Answer(response.status_code, response.headers.get("www-authenticate"), problem, text)


@dataclass(frozen=True)
class Answer:
    status: int
    challenge: str | None
    problem: dict[str, Any]
    text: str


def fill_path(path: str, things: Mapping[str, str]) -> str:
    """An operation's path with the names of things; what everybody may know is the same for all."""
    public = {"name": "adversarial.png"} if "artifacts" in path else {"name": "pgd"}
    public |= {"name": "smoothing"} if "certificates" in path else {}
    public |= {"id": things["key"]} if "/v1/keys/" in path else {}
    return path.format_map({**things, **public})


@pytest.fixture(scope="module")
def guarded(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedService]:
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    home = tmp_path_factory.mktemp("guarded")
    settings = Settings(home=home, redis_url=valkey_server, require_keys=True, refused_keys=10_000)
    with run_service(settings) as api:
        keys = {
            "reader": create_key(api, "acme", "read"),
            "submitter": create_key(api, "acme", "submit"),
            "admin": create_key(api, "acme", "admin"),
            "other": create_key(api, "other", "submit"),
            "revoked": create_key(api, "acme", "admin"),
            "expired": create_key(api, "acme", "admin", expires_at=make_expiry()),
            "unknown": f"ts_{'0' * 16}_{'0' * 64}",
            "malformed": "ts_x",
        }
        api.ledger.keys.revoke(keys["revoked"].split("_")[1])
        api.ledger.workers.heartbeat("w1", {"running": 0})
        things = create_resources(api, keys["submitter"]) | {"key": keys["reader"].split("_")[1]}
        time.sleep(0.05)  # until one has expired
        yield GuardedService(api, keys, things)


def create_key(api: Api, tenant: str, scope: Scope, **more: Any) -> str:
    return api.ledger.keys.create(KeyRequest(name="test", tenant=tenant, scope=scope, **more)).text


def make_expiry() -> datetime:
    return datetime.now(UTC) + timedelta(milliseconds=40)


def create_resources(api: Api, text: str) -> dict[str, str]:
    """What acme has: a job that has ended, a model, an endpoint and a delivery to it."""
    headers = {"Authorization": f"Bearer {text}"}
    job = api.submit(headers=headers)
    assert job.status_code == 200, job.text
    data = linear_onnx()
    card = complete_manifest(build_manifest(data), data).model_copy(update={"id": "acme-net"})
    acme = TenantLedger.of(api.ledger, "acme")
    acme.versions.register(card, MODEL_PROBE)
    endpoint = acme.endpoints.add("https://ci.example/", ["job.failed"], description="", secret="whsec_")
    delivery = acme.endpoints.ping(endpoint.id)
    return {
        "job": job.json()["id"],
        **{"id": card.id, "model": card.id, "version": card.digest.removeprefix("sha256:")},
        **{"endpoint": endpoint.id, "delivery": delivery.id},
    }


def test_operations_without_a_security_rule_are_public_ones() -> None:
    assert {path for _, path, operation in OPERATIONS.values() if "security" not in operation} <= PUBLIC_PATHS


@pytest.mark.parametrize(
    ("who", "code", "challenge"),
    [
        ("nobody", "key_missing", 'Bearer realm="touchstone"'),
        ("unknown", "key_invalid", 'Bearer realm="touchstone", error="invalid_token"'),
        ("malformed", "key_invalid", 'Bearer realm="touchstone", error="invalid_token"'),
        ("revoked", "key_invalid", 'Bearer realm="touchstone", error="invalid_token"'),
        ("expired", "key_expired", 'Bearer realm="touchstone", error="invalid_token"'),
    ],
)
def test_guarded_operations_are_401_without_a_valid_key(
    guarded: GuardedService, who: str, code: str, challenge: str
) -> None:
    for name in GUARDED:
        answer = guarded.call(name, who)
        assert (name, answer.status, answer.problem["code"]) == (name, 401, code)
        assert answer.challenge == challenge


@pytest.mark.parametrize("who", ["reader", "submitter"])
def test_operation_beyond_the_scope_of_the_key_is_403(guarded: GuardedService, who: str) -> None:
    scope: Scope = "read" if who == "reader" else "submit"
    beyond = [name for name in GUARDED if scope_of(name) not in IMPLIED_SCOPES[scope]]
    assert beyond
    for name in beyond:
        answer = guarded.call(name, who)
        assert (name, answer.status, answer.problem["code"]) == (name, 403, "insufficient_scope")
        assert answer.problem["scope"] == scope_of(name)
        assert (answer.challenge or "").endswith(f'error="insufficient_scope", scope="{scope_of(name)}"')


def test_other_tenants_resources_are_answered_like_nonexistent_ones(guarded: GuardedService) -> None:
    for name in OWNED:
        real, none = guarded.call(name, "other"), guarded.call(name, "other", {**guarded.things, **UNKNOWN})
        assert (name, real.status) == (name, 404)
        assert anonymize(real, guarded.things) == anonymize(none, UNKNOWN), name


def anonymize(answer: Answer, things: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """An answer without the names that were asked for."""
    text = answer.text
    for thing in sorted(things.values(), key=len, reverse=True):
        text = text.replace(thing, "…")
    return answer.status, json.loads(text)


def test_lists_do_not_show_other_tenants_resources(guarded: GuardedService) -> None:
    for name in set(GUARDED) - OWNED:
        if scope_of(name) == "admin":
            continue
        answer = guarded.call(name, "other")
        assert answer.status not in (401, 403), name
        assert not [
            thing for part, thing in guarded.things.items() if part != "key" and f'"{thing}"' in answer.text
        ], name


def test_other_tenants_model_is_answered_like_a_nonexistent_one(guarded: GuardedService) -> None:
    """Whatever takes a model's id answers as to one that there is not."""
    naming = [(name, *found) for name, found in GUARDED.items() if takes_model(found[2])]
    assert len(naming) > 50
    headers = {"Authorization": f"Bearer {guarded.keys['other']}"}
    for name, verb, path, _ in naming:
        said = []
        for model in (guarded.things["model"], UNKNOWN["model"]):
            fields = {"model": model, "image": data_url(png())}
            sent = {"json": fields} if verb == "POST" else {"params": {"model": model}}
            said.append(guarded.api.client.request(verb, path, headers=headers, **sent))
        assert {one.status_code for one in said} == {404}, name
        assert said[0].json()["detail"] == said[1].json()["detail"].replace(
            UNKNOWN["model"], guarded.things["model"]
        )


def takes_model(operation: Mapping[str, Any]) -> bool:
    """Whether an operation takes a model's id among its fields, other than to list jobs."""
    if operation["operationId"] == "list_jobs":
        return False
    query = any(part["name"] == "model" and part["in"] == "query" for part in operation.get("parameters", ()))
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return query or "model" in content.get("schema", {}).get("properties", {})


def test_key_with_the_needed_scope_permits_every_operation(guarded: GuardedService) -> None:
    """Last, because it also deletes."""
    for name in sorted(GUARDED, key=lambda name: GUARDED[name][0] == "DELETE"):
        who = {"read": "reader", "submit": "submitter", "admin": "admin"}[scope_of(name)]
        answer = guarded.call(name, who)
        assert answer.status not in (401, 403, 404), (name, answer.text)
