"""The OpenAPI description of a submission: one set of fields, as a form and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from service import problems
from service.openapi import examples
from service.schemas import Job
from service.submissions.bodies import JSON, MULTIPART
from service.submissions.webhook_urls import WEBHOOK

_OwnFields = Mapping[str, tuple[dict[str, Any], Any]]
"""Schema and example of the fields that differ between a form and JSON."""

REF = "#/components/schemas/{model}"

_FILE = {
    "type": "string",
    "format": "binary",
    "description": "A PNG, JPEG or WebP file, recognized by its content.",
}
_TEXT = {
    "type": "string",
    "minLength": 1,
    "description": "A PNG, JPEG or WebP file as a data URL or as base64.",
}

PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=N` waits up to N seconds (at most 60) for the job to end.",
    "schema": {"type": "string"},
    "example": "wait=10",
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key with the same request gives the same job.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "example": "4f7c1d1e-6a0b-4f57-9d70-2f1a3f0f6f11",
}
HEADERS = [PREFER, _KEY]
_WEBHOOK = {"type": "string", "minLength": 1, "description": WEBHOOK.description}


def describe_submission(*models: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an operation that FastAPI cannot derive from a signature: its body and its headers."""
    form, text = {"image": (_FILE, "(the file)")}, {"image": (_TEXT, examples.IMAGE)}
    return _describe_body(models, example, form, text)


def describe_fields(model: type[BaseModel], *, example: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a body without an image."""
    return _describe_body((model,), example, {}, {})


def describe_registration(model: type[BaseModel]) -> dict[str, Any]:
    """The same for a model's file with its manifest."""
    schema = model.model_json_schema(ref_template=REF)
    definitions = schema.pop("$defs", {})
    properties = {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "ONNX, safetensors, or a zip with an ONNX file and its weights, recognized by its "
            "content.",
        },
        "data": {
            "type": "string",
            "format": "binary",
            "description": "The weights of an ONNX file that keeps them in another file, under that file's "
            "name: `m.onnx.data`.",
        },
        "examples": {
            "type": "string",
            "format": "binary",
            "description": "A zip of at most 100 images and 10 MiB: in a folder for each class, or with a "
            "`metadata.csv` of `file_name` and `label`. A label is a class's name, WordNet id or index.",
        },
        "manifest": {**schema, "description": "What the file does not contain, as JSON."},
        "labels": {"type": "string", "description": "The classes' names, one a line, instead of `classes`."},
        "config": {
            "type": "object",
            "description": "The `config.json` of transformers or timm beside safetensors.",
        },
        "preprocessor_config": {
            "type": "object",
            "description": "The `preprocessor_config.json` of transformers.",
        },
        "webhook": _WEBHOOK,
    }
    form = {
        "schema": {
            "type": "object",
            "required": ["file", "manifest"],
            "additionalProperties": False,
            "properties": properties,
        },
        "encoding": {
            **{name: {"contentType": JSON} for name in ("manifest", "config", "preprocessor_config")},
            "labels": {"contentType": "text/plain"},
        },
        "example": {"file": "(the file)", "manifest": examples.MANIFEST},
    }
    schema = {**schema, "properties": {**schema["properties"], "webhook": _WEBHOOK}}
    remote = {"schema": schema, "example": examples.REMOTE}
    return {
        "requestBody": {"required": True, "content": {MULTIPART: form, JSON: remote}},
        "parameters": HEADERS,
        "x-definitions": definitions,
    }


def describe_query(*models: type[BaseModel]) -> dict[str, Any]:
    """The parameters of an operation with a method's fields in its query."""
    properties, _, definitions = _merge_schemas(models)
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": _without_null(schema)}
        for name, schema in properties.items()
    ]
    return {"parameters": parameters, "x-definitions": definitions}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without null, which a query cannot have."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if "anyOf" not in schema or len(choices) == len(schema["anyOf"]):
        return schema
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return {**rest, **(choices[0] if len(choices) == 1 else {"anyOf": choices})}


def _describe_body(
    models: tuple[type[BaseModel], ...], example: Mapping[str, Any], form: _OwnFields, text: _OwnFields
) -> dict[str, Any]:
    properties, required, definitions = _merge_schemas(models)

    def media(own: _OwnFields) -> dict[str, Any]:
        schemas = {name: schema for name, (schema, _) in own.items()} | properties
        shown = {name: value for name, (_, value) in own.items()} | dict(example)
        schema = {"type": "object", "required": [*own, *required], "additionalProperties": False}
        return {"schema": {**schema, "properties": schemas}, "example": shown}

    return {
        "requestBody": {"required": True, "content": {MULTIPART: media(form), JSON: media(text)}},
        "parameters": HEADERS,
        "x-definitions": definitions,
    }


def _merge_schemas(
    models: tuple[type[BaseModel], ...],
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    definitions: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=REF)
        properties |= schema.get("properties", {})
        required += schema.get("required", [])
        definitions |= schema.get("$defs", {})
    return properties, required, definitions


def example_parameters(model: type[BaseModel]) -> dict[str, Any]:
    """A method's parameters for an example: the example of a field where it has one, else its default."""
    fields = model.model_json_schema()["properties"]
    return {
        name: field.get("examples", [field.get("default")])[0]
        for name, field in fields.items()
        if field.get("examples", [field.get("default")])[0] is not None
    }


def describe_responses(
    *, png: bool, example: Mapping[str, Any] = examples.JOB
) -> dict[int | str, dict[str, Any]]:
    """The responses of a submission."""
    job = examples.content(example)
    done = {"model": Job, "description": "The job has ended.", **job}
    if png:
        file = {"schema": {"type": "string", "contentMediaType": "image/png"}}
        done["content"] = {**job["content"], "image/png": file}
    accepted = {"description": "The job is accepted, and will not be lost.", **job}
    return {200: done, 202: accepted, **problems.responses(400, 404, 408, 409, 413, 415, 422, 429, 507)}


def hoist(schema: dict[str, Any]) -> dict[str, Any]:
    """Move the definitions of the submissions' schemas, and the problem, to the components."""
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for path in schema["paths"].values():
        for operation in path.values():
            schemas |= operation.pop("x-definitions", {})
            if "security" in operation:
                refusals = problems.responses(401, 403, 429)
                operation["responses"] |= {str(status): about for status, about in refusals.items()}
            for response in operation["responses"].values():
                for media in response.get("content", {}).values():
                    examples.unfold(media)
    problem = problems.Problem.model_json_schema(mode="serialization")
    schemas["Problem"] = {**problem, "examples": [examples.PROBLEM]}
    return schema
