"""Endpoints that are notified when jobs end, and the secrets that sign the messages."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service import problems
from service.auth.permissions import reader, submitter
from service.dependencies import Tenant
from service.openapi import examples
from service.pagination import Cursor, Limit, Page, link_next, paginate
from service.routers import deliveries
from service.routers.deliveries import Delivery
from service.state.backend import TenantBackend
from service.submissions import bodies
from service.submissions.bodies import JSON, RawBody
from service.submissions.webhook_urls import Url, check_webhook_url
from touchstone.fields import refuse_unknown
from touchstone.ledger.webhooks import endpoints, signatures
from touchstone.ledger.webhooks.endpoints import JOB_EVENTS, JobEvent
from touchstone.methods import invalid_parameter

router = APIRouter(tags=["webhooks"])

EndpointId = Annotated[
    str,
    Path(
        description="An endpoint's id.",
        examples=["wh_9f86d081884c7d659a2feaa0"],
        json_schema_extra={"pattern": "^wh_[0-9a-f]{24}$"},
    ),
]


class NewEndpoint(BaseModel):
    """A new endpoint: its URL and its events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Url = Field(description="An https URL.", examples=["https://ci.example/touchstone"])
    events: tuple[JobEvent, ...] = Field(
        JOB_EVENTS, min_length=1, max_length=10, description="The events to send; by default all."
    )
    description: str = Field("", max_length=200, description="A note for people.", examples=["nightly build"])
    secret: str | None = Field(
        None,
        max_length=200,
        description="`whsec_` and base64 of 24 to 64 bytes; by default one is generated.",
    )


class Endpoint(BaseModel):
    """A URL that is notified when jobs end."""

    id: str
    url: str
    events: tuple[JobEvent, ...]
    description: str
    created_at: datetime
    disabled_at: datetime | None = Field(
        description="When it was disabled, for it answered 410; a successful ping enables it again."
    )


class EndpointWithSecret(Endpoint):
    """An endpoint with its secret, which is shown only once."""

    secret: str


class Secret(BaseModel):
    """A new secret, which is shown only once."""

    secret: str
    previous_until: datetime = Field(
        description="Until then messages are signed with the previous secret, too."
    )


_ENDPOINT = {
    "id": "wh_9f86d081884c7d659a2feaa0",
    "url": "https://ci.example/touchstone",
    "events": ["job.failed", "job.canceled"],
    "description": "nightly build",
    "created_at": "2026-11-22T09:30:00.120000Z",
    "disabled_at": None,
}
_KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYq="
_ROTATED = {"secret": _KEY, "previous_until": "2026-11-23T09:30:00.120000Z"}


@router.post(
    "/v1/webhooks",
    dependencies=[submitter],
    operation_id="create_webhook",
    summary="Register an endpoint",
    status_code=201,
    response_model=EndpointWithSecret,
    responses={
        201: examples.content({**_ENDPOINT, "secret": _KEY}),
        **problems.responses(400, 408, 409, 413, 415, 422),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": NewEndpoint.model_json_schema(),
                    "example": {name: _ENDPOINT[name] for name in ("url", "events", "description")},
                }
            },
        }
    },
)
async def create_webhook(request: Request, backend: Tenant) -> Response:
    """It is notified of the end of every job, in messages signed by the Standard Webhooks specification.
    Inference requests send no events.
    """
    received = await bodies.receive(request, JSON)
    made = await to_thread.run_sync(_create, backend, received)
    headers = {"Location": f"/v1/webhooks/{made.id}", "Cache-Control": "no-store"}
    return Response(made.model_dump_json(), 201, headers, JSON)


def _create(backend: TenantBackend, received: RawBody) -> EndpointWithSecret:
    asked = _parse(received)
    check_webhook_url(asked.url, backend.settings, field="url")
    secret = signatures.new_secret() if asked.secret is None else asked.secret
    signatures.check_secret(secret)
    events = sorted(set(asked.events), key=JOB_EVENTS.index)
    made = backend.ledger.endpoints.add(asked.url, events, description=asked.description, secret=secret)
    return EndpointWithSecret(**made.model_dump(), secret=secret)


def _parse(received: RawBody) -> NewEndpoint:
    fields = bodies.fields_of(received)
    refuse_unknown(fields, list(NewEndpoint.model_fields), "a webhook")
    try:
        return NewEndpoint.model_validate(fields)
    except ValidationError as error:
        raise invalid_parameter(error) from None


@router.get(
    "/v1/webhooks",
    dependencies=[reader],
    operation_id="list_webhooks",
    summary="All endpoints",
    responses={200: examples.page(_ENDPOINT), **problems.responses(422)},
)
def list_webhooks(
    request: Request, response: Response, backend: Tenant, limit: Limit = 50, cursor: Cursor = None
) -> Page[Endpoint]:
    """The newest first; without their secrets."""
    found = backend.ledger.endpoints.all()
    page = paginate({one.id: _show(one) for one in found}, limit, cursor)
    link_next(request, response, page.cursor)
    return page


@router.get(
    "/v1/webhooks/{endpoint}",
    dependencies=[reader],
    operation_id="get_webhook",
    summary="An endpoint",
    responses={200: examples.content(_ENDPOINT), **problems.responses(404)},
)
def get_webhook(backend: Tenant, endpoint: EndpointId) -> Endpoint:
    """Without its secret."""
    return _show(backend.ledger.endpoints.read(endpoint))


def _show(endpoint: endpoints.WebhookEndpoint) -> Endpoint:
    return Endpoint(**endpoint.model_dump())


@router.delete(
    "/v1/webhooks/{endpoint}",
    dependencies=[submitter],
    operation_id="delete_webhook",
    summary="Delete an endpoint",
    status_code=204,
    responses={204: {"description": "The endpoint is deleted."}, **problems.responses(404)},
)
def delete_webhook(backend: Tenant, endpoint: EndpointId) -> Response:
    """Its pending deliveries fail."""
    backend.ledger.endpoints.delete(endpoint)
    return Response(status_code=204)


@router.post(
    "/v1/webhooks/{endpoint}/rotate",
    dependencies=[submitter],
    operation_id="rotate_webhook",
    summary="Give an endpoint a new secret",
    responses={200: examples.content(_ROTATED), **problems.responses(404)},
)
def rotate_webhook(backend: Tenant, response: Response, endpoint: EndpointId) -> Secret:
    """For a day messages are signed with the previous secret, too, so that receivers can switch."""
    return _rotate(backend, response, endpoint)


@router.post(
    "/v1/webhooks/secret",
    dependencies=[submitter],
    operation_id="rotate_webhook_secret",
    summary="Generate the secret for webhooks of submissions",
    responses={200: examples.content(_ROTATED), **problems.responses()},
)
def rotate_webhook_secret(backend: Tenant, response: Response) -> Secret:
    """Messages to the `webhook` of any submission are signed with this secret. Each call generates a new one;
    for a day messages are signed with the previous one, too.
    """
    return _rotate(backend, response, "")


def _rotate(backend: TenantBackend, response: Response, endpoint: str) -> Secret:
    secret, until = backend.ledger.endpoints.rotate(endpoint)
    response.headers["Cache-Control"] = "no-store"
    return Secret(secret=secret, previous_until=until)


@router.post(
    "/v1/webhooks/{endpoint}/ping",
    dependencies=[submitter],
    operation_id="ping_webhook",
    summary="Send an endpoint a ping",
    status_code=202,
    responses={202: examples.content(deliveries.PING), **problems.responses(404)},
)
def ping_webhook(backend: Tenant, response: Response, endpoint: EndpointId) -> Delivery:
    """An event of type `webhook.ping`, sent like all others. A disabled endpoint is enabled again if it
    answers.
    """
    return deliveries.show_accepted(response, backend.ledger.endpoints.ping(endpoint))
