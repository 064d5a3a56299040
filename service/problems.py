"""Failures as RFC 9457 problems: the table of HTTP statuses, and the JSON of a problem."""

from __future__ import annotations

import http
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from touchstone import errors
from touchstone.errors import Failure

MEDIA_TYPE = "application/problem+json"

STATUSES: Mapping[type[Failure], int] = MappingProxyType(
    {
        Failure: 500,
        errors.InvalidParameter: 422,
        errors.InvalidImage: 422,
        errors.ImageTooLarge: 413,
        errors.CostTooHigh: 422,
        errors.UnknownMethod: 404,
        errors.UnknownModel: 404,
        errors.UnknownLabel: 422,
        errors.ModelConflict: 409,
        errors.ModelInUse: 409,
        errors.ModelTooLarge: 413,
        errors.ModelTooCostly: 422,
        errors.NonFiniteOutput: 422,
        errors.GradientRefused: 422,
        errors.BatchDependent: 422,
        errors.ModelUnusable: 503,
        errors.AddressRefused: 422,
        errors.RemoteUnavailable: 503,
        errors.RemoteAnswer: 503,
        errors.QueryBudgetSpent: 422,
        errors.InvalidModel: 422,
        errors.UnsupportedOperator: 422,
        errors.DataUnavailable: 503,
        errors.OutOfMemory: 503,
        errors.JobCanceled: 409,
        errors.DeadlineExceeded: 422,
        errors.TimeExceeded: 422,
        errors.WorkerLost: 503,
        errors.WorkerStopping: 503,
        errors.UnknownJob: 404,
        errors.UnreadableJob: 503,
        errors.UnknownArtifact: 404,
        errors.JobConflict: 409,
        errors.IdempotencyMismatch: 422,
        errors.InvalidCursor: 422,
        errors.QueueFull: 429,
        errors.TenantQueueFull: 429,
        errors.BudgetSpent: 429,
        errors.RateLimited: 429,
        errors.TooManyStreams: 429,
        errors.TooManyWaits: 429,
        errors.UnknownWebhook: 404,
        errors.UnknownDelivery: 404,
        errors.WebhookConflict: 409,
        errors.StorageFull: 507,
        errors.LedgerUnavailable: 503,
        errors.NotReady: 503,
        errors.KeyMissing: 401,
        errors.KeyInvalid: 401,
        errors.KeyExpired: 401,
        errors.InsufficientScope: 403,
        errors.UnknownKey: 404,
        errors.HostRefused: 403,
        errors.CrossSiteRefused: 403,
    }
)
"""The status of each failure; a test checks that it is complete."""

_HTTP_CODES: Mapping[int, str] = MappingProxyType(
    {
        400: "invalid_body",
        404: "not_found",
        405: "method_not_allowed",
        408: "body_too_slow",
        413: "body_too_large",
        415: "unsupported_media_type",
        416: "range_not_satisfiable",
        503: "overloaded",
    }
)
_RETRY_SECONDS = 1
_INFERENCE_PATH = re.compile(r"/v2(/|$)")
"""Paths of the Open Inference Protocol, whose clients read `error` in an error response."""


class Problem(BaseModel):
    """An error, in the format of RFC 9457. Programs match `code`; people read `detail`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="A URI that identifies the kind of problem.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What is wrong, where, and what is expected.")
    instance: str = Field(description="The path of the request.")
    code: str = Field(description="The kind of problem as a stable word.")
    field: str | None = Field(None, description="The invalid parameter, if it is one.")


def _with_subclasses(failure: type[Failure]) -> set[type[Failure]]:
    return {failure}.union(*(_with_subclasses(kind) for kind in failure.__subclasses__()))


def _title(failure: type[Failure]) -> str:
    return (failure.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _titles() -> dict[str, str]:
    known = {kind.code: _title(kind) for kind in STATUSES if kind is not Failure}
    return known | {Failure.code: "Something went wrong inside the service"}


TITLES: Mapping[str, str] = MappingProxyType(_titles())


def status_of(code: str) -> int:
    """The status of a failure of which only the code is known, such as that of a failed job."""
    return next((status for kind, status in STATUSES.items() if kind.code == code), 500)


def members(status: int, code: str, detail: str, *, path: str) -> dict[str, Any]:
    """The members that every problem has."""
    return {
        "type": f"urn:touchstone:problem:{code}",
        "title": TITLES.get(code) or http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": quote(path[:500], safe="/~:@!$&'()*+,;="),
        "code": code,
    }


def build_response(  # a problem has many members, each named at the call
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    field: str | None = None,
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A response with a problem."""
    body = members(status, code, detail, path=request.scope["path"])
    if field is not None:
        body["field"] = field
    if _INFERENCE_PATH.match(request.scope["path"]):
        body["error"] = detail
    whole = {**body, **{name: value for name, value in (extra or {}).items() if name not in body}}
    return Response(json.dumps(whole, default=str), status, dict(headers or {}), MEDIA_TYPE)


def from_failure(request: Request, failure: Failure) -> Response:
    """A response with the problem of a failure."""
    status = STATUSES.get(type(failure), 500)
    headers = _challenge(failure, status)
    if status in (429, 503, 507):
        headers["Retry-After"] = str(failure.extra.get("retry_after", _RETRY_SECONDS))
    return build_response(
        request,
        status,
        failure.code,
        failure.detail,
        field=failure.field,
        extra=failure.extra,
        headers=headers,
    )


def _challenge(failure: Failure, status: int) -> dict[str, str]:
    """How a client can authenticate, by RFC 6750."""
    told = {"realm": "touchstone"}
    if isinstance(failure, errors.InsufficientScope):
        told |= {"error": failure.code, "scope": str(failure.extra.get("scope", ""))}
    elif status != 401:
        return {}
    elif not isinstance(failure, errors.KeyMissing):
        told["error"] = "invalid_token"
    return {"WWW-Authenticate": "Bearer " + ", ".join(f'{name}="{value}"' for name, value in told.items())}


def internal_error(request: Request) -> Response:
    """The problem of an internal error; it shows no details."""
    return build_response(request, 500, Failure.code, "the service failed to answer; its log tells why")


async def _on_failure(request: Request, error: Failure) -> Response:
    return from_failure(request, error)


async def _on_invalid_request(request: Request, error: RequestValidationError) -> Response:
    faults = [
        {"field": ".".join(str(part) for part in fault["loc"][1:]), "message": fault["msg"]}
        for fault in error.errors()
    ]
    field, message = faults[0]["field"], faults[0]["message"]
    return build_response(
        request,
        422,
        errors.InvalidParameter.code,
        f"{field}: {message}",
        field=field,
        extra={"errors": faults},
    )


async def _on_http(request: Request, error: HTTPException) -> Response:
    code = _HTTP_CODES.get(error.status_code, "http_error")
    detail, headers = error.detail, dict(error.headers or {})
    if error.status_code == 404:
        detail = "there is nothing at this path; /docs shows what there is"
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
        detail = f"{request.method[:20]} is not possible here; possible: {headers['Allow']}"
    return build_response(request, error.status_code, code, detail, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """The methods that all routes of the path permit; the router names those of the first match only."""
    path, contexts = request.scope["path"], iter_route_contexts(request.app.routes)
    fitting = (context for context in contexts if isinstance(context.original_route, APIRoute))
    return sorted({name for route in fitting if route.path_regex.match(path) for name in route.methods or ()})


def install(app: FastAPI) -> None:
    """Turn every error of the application into a problem."""
    app.exception_handler(Failure)(_on_failure)
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(HTTPException)(_on_http)


_ABOUT = {
    400: "The body cannot be read.",
    401: "An API key is needed; or the one sent is unknown, or has expired.",
    403: "The API key does not permit this.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "The job's state does not permit this.",
    413: "The body or the image is too large.",
    415: "The body's media type is not one of those shown.",
    416: "The range lies outside the file.",
    422: "A parameter or the image cannot be used.",
    429: "As many jobs or requests wait as may, a budget is spent, or requests come too fast.",
    503: "The ledger or a worker cannot be reached, or too much is being sent at once.",
    507: "There is no room to store it.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of an operation, for OpenAPI; every other error has the same form."""
    known: dict[int | str, dict[str, Any]] = {
        status: _about(_ABOUT[status]) for status in sorted({*statuses, 503})
    }
    return {**known, "default": _about("Any other problem.")}


def _about(text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": text, "content": {MEDIA_TYPE: {"schema": schema}}}
