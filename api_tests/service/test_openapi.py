"""OpenAPI: complete, with examples that work."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from api_tests.support.fake_service import Api, sample_manifest
from service.app import create_app
from touchstone.check import check
from touchstone.methods import catalogue
from touchstone.registration.request import Registration
from touchstone.settings import Settings

OPENAPI: dict[str, Any] = create_app(Settings(home=Path("nowhere")), dispatch=lambda _: None).openapi()
OPERATIONS = {
    operation["operationId"]: (path, verb)
    for path, verbs in OPENAPI["paths"].items()
    for verb, operation in verbs.items()
}


def find_operation(name: str) -> dict[str, Any]:
    path, verb = OPERATIONS[name]
    found: dict[str, Any] = OPENAPI["paths"][path][verb]
    return found


def walk_objects(value: object) -> Iterator[dict[str, Any]]:
    """Every object of the document."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk_objects(part)


def is_valid(schema: dict[str, Any], example: object) -> bool:
    whole = {**copy.deepcopy(schema), "components": OPENAPI["components"]}
    return jsonschema_rs.validator_for(whole).is_valid(example)


def test_operation_ids_are_unique() -> None:
    operations = [operation for verbs in OPENAPI["paths"].values() for operation in verbs.values()]
    assert len(OPERATIONS) == len(operations)


def test_openapi_paths_equal_the_contract() -> None:
    paths = {(verb.upper(), path) for path, verb in OPERATIONS.values()}
    contract = {
        *(("POST", f"/v1/{method.kind}s/{name}") for name, method in catalogue().items()),
        *(("GET", f"/v1/{method.kind}s/{name}/cost") for name, method in catalogue().items()),
        *(("GET", "/v1/predictions/cost"), ("GET", "/v1/operations")),
        *(("GET", f"/v1/{kind}{tail}") for kind in ("attacks", "certificates") for tail in ("", "/{name}")),
        *(
            ("POST", "/v1/predictions"),
            ("GET", "/v1/models"),
            ("POST", "/v1/models"),
            ("GET", "/v1/models/{id}"),
            ("DELETE", "/v1/models/{id}"),
            ("GET", "/v1/jobs"),
        ),
        *(("GET", "/v1/jobs/{job}"), ("DELETE", "/v1/jobs/{job}"), ("GET", "/v1/jobs/{job}/events")),
        *(
            ("POST", "/v1/jobs/cancel"),
            ("POST", "/v1/jobs/{job}/cancel"),
            ("POST", "/v1/jobs/{job}/rerun"),
            ("POST", "/v1/jobs/{job}/continue"),
        ),
        *(
            ("GET", "/v1/jobs/{job}/artifacts/{name}"),
            ("GET", "/v1/events"),
            ("GET", "/healthz"),
            ("GET", "/readyz"),
            ("GET", "/metrics"),
        ),
        *(("POST", "/v1/keys"), ("GET", "/v1/keys"), ("DELETE", "/v1/keys/{id}")),
        *(("POST", "/v1/webhooks"), ("GET", "/v1/webhooks"), ("POST", "/v1/webhooks/secret")),
        *((verb, "/v1/webhooks/{endpoint}") for verb in ("GET", "DELETE")),
        *(("POST", f"/v1/webhooks/{{endpoint}}/{verb}") for verb in ("rotate", "ping")),
        *(("GET", f"/v1/webhooks/deliveries{tail}") for tail in ("", "/{delivery}")),
        ("POST", "/v1/webhooks/deliveries/{delivery}/replay"),
        *(("GET", f"/v2{tail}") for tail in ("", "/health/live", "/health/ready")),
        *(
            (verb, f"/v2/models/{{model}}{version}{tail}")
            for version in ("", "/versions/{version}")
            for verb, tail in (("GET", ""), ("GET", "/ready"), ("POST", "/infer"))
        ),
    }
    assert paths == contract


def examples(name: str) -> Iterator[tuple[dict[str, Any], object]]:
    """Schemas of an operation with the examples beside them."""
    found = find_operation(name)
    bodies = [found.get("requestBody", {}), *found["responses"].values()]
    for media in (media for body in bodies for media in body.get("content", {}).values()):
        if "example" in media:
            yield media.get("schema", {}), media["example"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_valid_examples(name: str) -> None:
    found = list(examples(name))
    ok = next(iter(find_operation(name)["responses"]))
    assert found or ok == "204"
    assert all(is_valid(schema, example) for schema, example in found)
    for parameter in find_operation(name).get("parameters", ()):
        shown = parameter.get("example", *parameter["schema"].get("examples", [])[:1])
        assert shown is None or is_valid(parameter["schema"], shown)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_summary_description_tags_and_problem(name: str) -> None:
    found = find_operation(name)
    assert found["summary"]
    assert found["description"]
    assert found["tags"]
    problem = found["responses"].get("default")
    assert problem is None or "application/problem+json" in problem["content"]


OTHER_BODIES = (
    "continue_job",
    "cancel_jobs",
    "infer_model",
    "infer_version",
    "register_model",
    "create_webhook",
    "create_key",
)
SUBMISSIONS = [
    name for name in OPERATIONS if "requestBody" in find_operation(name) and name not in OTHER_BODIES
]


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_submission_schema_has_the_same_fields_as_form_and_json(name: str) -> None:
    content = find_operation(name)["requestBody"]["content"]
    form, text = (content[kind]["schema"] for kind in ("multipart/form-data", "application/json"))
    assert form["properties"]["image"]["format"] == "binary"
    assert list(form["properties"]) == list(text["properties"])
    assert form["required"] == text["required"] == ["image", "model"]
    assert {"seed", "execution", "deadline", "webhook"} <= set(text["properties"])


def test_continuation_schema_has_the_same_fields_as_form_and_json() -> None:
    content = find_operation("continue_job")["requestBody"]["content"]
    form, text = (content[kind] for kind in ("multipart/form-data", "application/json"))
    assert form == text
    assert form["schema"]["required"] == ["n"]
    assert set(form["schema"]["properties"]) == {"n", "target_radius", "deadline", "webhook"}


def test_registration_schema_has_file_and_all_manifest_fields() -> None:
    form = find_operation("register_model")["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "manifest"]
    assert form["properties"]["file"]["format"] == "binary"
    assert set(form["properties"]["manifest"]["properties"]) == set(Registration.model_fields)
    assert "webhook" in form["properties"]


@pytest.mark.parametrize("name", catalogue())
def test_method_fields_are_shown_with_their_descriptions(name: str) -> None:
    content = find_operation(f"run_{name}")["requestBody"]["content"]
    for field, info in catalogue()[name].model_fields.items():
        shown = content["application/json"]["schema"]["properties"][field]
        assert shown["description"] == info.description


def test_bounds_use_json_schema_keywords() -> None:
    assert not [part for part in walk_objects(OPENAPI) if {"ge", "gt", "le", "lt"} & set(part)]


def test_every_schema_reference_exists() -> None:
    references = {part["$ref"] for part in walk_objects(OPENAPI) if "$ref" in part}
    schemas = {f"#/components/schemas/{name}" for name in OPENAPI["components"]["schemas"]}
    assert references <= schemas


def test_submission_examples_succeed_when_sent(api: Api) -> None:
    for name in SUBMISSIONS:
        example = find_operation(name)["requestBody"]["content"]["application/json"]["example"]
        response = api.client.post(OPERATIONS[name][0], json=example, headers={"Prefer": "wait=10"})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("name", ["infer_model", "infer_version"])
def test_inference_example_succeeds_when_sent(api: Api, name: str) -> None:
    example = find_operation(name)["requestBody"]["content"]["application/json"]["example"]
    path = OPERATIONS[name][0].format(model=sample_manifest().id, version=sample_manifest().digest)
    assert api.client.post(path, json=example).status_code == 200


def test_openapi_json_is_served_as_generated(api: Api) -> None:
    assert api.client.get("/openapi.json").json() == OPENAPI


def test_certificate_example_passes_the_checker() -> None:
    shown = find_operation("run_smoothing")["responses"]["200"]["content"]["application/json"]["example"]
    assert [finding for finding in check(shown) if not finding.agrees] == []
