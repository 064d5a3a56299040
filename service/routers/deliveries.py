"""Deliveries of webhooks: what was sent, with which result, and sending it again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from service import problems, schemas
from service.auth.permissions import reader, submitter
from service.dependencies import Tenant
from service.openapi import examples
from service.pagination import Cursor, Limit, Page, link_next
from touchstone.ledger.records import Job
from touchstone.ledger.webhooks import deliveries
from touchstone.ledger.webhooks.deliveries import Attempt, DeliveryStatus, DeliveryType

router = APIRouter(tags=["webhooks"])

_HERE = "/v1/webhooks/deliveries"

DeliveryId = Annotated[
    str,
    Path(
        description="A delivery's id: the `webhook-id` of its message.",
        examples=["msg_0beec7b5ea3f0fdbc95d0dd47f3c5bc275da8a33"],
        json_schema_extra={"pattern": "^msg_[0-9a-f]{40}$"},
    ),
]
_NAME = Query(max_length=64)


class Delivery(BaseModel):
    """A message to one receiver."""

    id: str = Field(description="The `webhook-id` of its message, the same at every attempt.")
    type: DeliveryType
    status: DeliveryStatus
    endpoint: str | None = Field(description="The endpoint's id; null where a submission named the URL.")
    url: str
    job: str | None = Field(description="The job that ended; null for a ping.")
    created_at: datetime
    next_attempt_at: datetime | None = Field(description="Null where no attempt is planned.")
    attempts: tuple[Attempt, ...] = Field(description="The last twenty, the oldest first.")


_DELIVERY: dict[str, Any] = {
    "id": "msg_0beec7b5ea3f0fdbc95d0dd47f3c5bc275da8a33",
    "type": "job.succeeded",
    "status": "pending",
    "endpoint": "wh_9f86d081884c7d659a2feaa0",
    "url": "https://ci.example/touchstone",
    "job": examples.JOB["id"],
    "created_at": "2026-11-22T09:30:00.770000Z",
    "next_attempt_at": "2026-11-22T09:30:05.800000Z",
    "attempts": [{"status": 500, "error": "refused", "ms": 31, "at": "2026-11-22T09:30:00.812000Z"}],
}
PING = {**_DELIVERY, "type": "webhook.ping", "job": None, "attempts": []}


def delivery_payload(job: Job) -> dict[str, Any]:
    """A job as receivers get it: the same JSON as in responses."""
    return schemas.show(job).model_dump(mode="json")


def _show(found: deliveries.DeliveryRecord) -> Delivery:
    return Delivery(**found.model_dump(exclude={"tenant", "due_at"}), next_attempt_at=found.due_at)


def show_accepted(response: Response, delivery: deliveries.DeliveryRecord) -> Delivery:
    """A delivery that will be sent soon, with its `Location`."""
    response.headers["Location"] = f"{_HERE}/{delivery.id}"
    return _show(delivery)


@router.get(
    _HERE,
    dependencies=[reader],
    operation_id="list_deliveries",
    summary="Deliveries, newest first",
    responses={200: examples.page(_DELIVERY), **problems.responses(422)},
)
def list_deliveries(
    request: Request,
    response: Response,
    backend: Tenant,
    *,
    status: DeliveryStatus | None = None,
    endpoint: Annotated[str | None, _NAME] = None,
    job: Annotated[str | None, _NAME] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Delivery]:
    """Those that fit every filter. They are kept as long as their jobs, but no longer than a week."""
    found, following = backend.ledger.deliveries.find(
        status=status, endpoint=endpoint, job=job, limit=limit, cursor=cursor
    )
    link_next(request, response, following)
    return Page[Delivery](items=[_show(one) for one in found], cursor=following)


@router.get(
    _HERE + "/{delivery}",
    dependencies=[reader],
    operation_id="get_delivery",
    summary="A delivery and its attempts",
    responses={200: examples.content(_DELIVERY), **problems.responses(404)},
)
def get_delivery(backend: Tenant, delivery: DeliveryId) -> Delivery:
    """Of a receiver's response only the status is kept and shown."""
    return _show(backend.ledger.deliveries.read(delivery))


@router.post(
    _HERE + "/{delivery}/replay",
    dependencies=[submitter],
    operation_id="replay_delivery",
    summary="Send a delivery again",
    status_code=202,
    responses={202: examples.content(_DELIVERY), **problems.responses(404, 409)},
)
def replay_delivery(backend: Tenant, response: Response, delivery: DeliveryId) -> Delivery:
    """At once and with the same `webhook-id`, with all attempts again."""
    return show_accepted(response, backend.ledger.deliveries.replay(delivery))
