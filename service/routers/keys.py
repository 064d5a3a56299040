"""API keys over HTTP, for the operator."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response
from pydantic import Field, ValidationError

from service import problems
from service.auth.permissions import admin
from service.openapi import examples
from service.pagination import Cursor, Limit, Page, link_next, paginate
from service.state.backend import AllTenants, Backend
from service.submissions import bodies
from service.submissions.bodies import JSON, RawBody
from touchstone.fields import refuse_unknown
from touchstone.ledger.api_keys import IssuedKey, Key, KeyRequest
from touchstone.methods import invalid_parameter

router = APIRouter(tags=["keys"], dependencies=[admin])


class NewKey(Key):
    """A key with its text, which is shown only once."""

    key: str = Field(description="What clients send, as `Authorization: Bearer ts_…`.")


_ID = "9f86d081884c7d65"
_REQUEST = {"name": "ci of the vision team", "tenant": "vision", "scope": "submit", "expires_at": None}
_EXAMPLE: dict[str, Any] = {
    "id": _ID,
    **_REQUEST,
    "created_at": "2026-11-22T09:30:00.120000Z",
    "used_at": None,
}


@router.post(
    "/v1/keys",
    operation_id="create_key",
    summary="Create an API key",
    status_code=201,
    response_model=NewKey,
    responses={
        201: examples.content({**_EXAMPLE, "key": f"ts_{_ID}_{'0' * 64}"}),
        **problems.responses(400, 408, 413, 415, 422),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": KeyRequest.model_json_schema(), "example": _REQUEST}},
        }
    },
)
async def create_key(request: Request, backend: AllTenants) -> Response:
    """The only response with the key's text. The key gives access to its tenant's data alone."""
    received = await bodies.receive(request, JSON)
    issued = await to_thread.run_sync(_create, backend, received)
    shown = NewKey(**issued.key.model_dump(), key=issued.text)
    return Response(shown.model_dump_json(), 201, {"Cache-Control": "no-store"}, JSON)


def _create(backend: Backend, received: RawBody) -> IssuedKey:
    fields = bodies.fields_of(received)
    refuse_unknown(fields, list(KeyRequest.model_fields), "a key")
    try:
        asked = KeyRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid_parameter(error) from None
    return backend.ledger.keys.create(asked)


@router.get(
    "/v1/keys",
    operation_id="list_keys",
    summary="All API keys",
    response_model=Page[Key],
    responses={200: examples.page(_EXAMPLE), **problems.responses(422)},
)
def list_keys(request: Request, backend: AllTenants, limit: Limit = 200, cursor: Cursor = None) -> Response:
    """Those of all tenants, the oldest first, without their text. `used_at` is exact to the minute."""
    keys = {key.id: key for key in backend.ledger.keys.all()}
    page = Page[Key].model_validate(paginate(keys, limit, cursor).model_dump())
    response = Response(page.model_dump_json(), media_type=JSON)
    link_next(request, response, page.cursor)
    return response


@router.delete(
    "/v1/keys/{id}",
    operation_id="revoke_key",
    summary="Revoke an API key",
    status_code=204,
    responses={204: {"description": "The key is revoked."}, **problems.responses(404)},
)
def revoke_key(
    backend: AllTenants,
    id_: Annotated[
        str,
        Path(
            alias="id",
            description="A key's id.",
            examples=[_ID],
            json_schema_extra={"pattern": "^[0-9a-f]{16}$"},
        ),
    ],
) -> Response:
    """Effective at once, in every process; streams opened with the key end within a second."""
    backend.ledger.keys.revoke(id_)
    return Response(status_code=204)
