"""Attacks and certificates: their cards, and one operation for each, generated from its declaration."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import cache, partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, Field

from service import problems, schemas
from service.auth.permissions import reader, submitter
from service.dependencies import Tenant
from service.headers import Preferences, SubmissionHeaders
from service.openapi import examples, operations
from service.pagination import Cursor, Limit, Page, link_next, paginate
from service.state.backend import TenantBackend
from service.submissions import acceptance
from service.submissions.validation import CommonFields, prepare_method, prepare_prediction, request_fields
from touchstone.fields import NormName, parse_norm
from touchstone.methods import Access, Kind, Method, build_card, catalogue, find
from touchstone.methods.prediction import Predict
from touchstone.models import zoo

Name = Annotated[
    str,
    Path(
        description="A method's name.",
        examples=["pgd"],
        json_schema_extra={"pattern": "^[a-z0-9_-]{1,40}$"},
    ),
]
Card = dict[str, Any]
Endpoint = Callable[[Request, TenantBackend, SubmissionHeaders], Awaitable[Response]]

_EXAMPLES = {"attack": examples.JOB, "certificate": examples.CERTIFICATE}
_MODEL = {"model": next(iter(zoo.manifests()), "my-net")}


class MethodFilters(BaseModel):
    """Filters of a list of methods."""

    knowledge: Literal["white-box", "black-box"] | None = Field(
        None, description="Whether it uses the model's gradients."
    )
    access: Access | None = Field(None, description="What it needs of the model.")
    norm: Annotated[NormName, BeforeValidator(parse_norm)] | None = Field(
        None, description="A norm that it supports."
    )
    targeted: bool | None = Field(None, description="Whether it supports a target class.")
    budget: Literal["fixed", "minimal"] | None = Field(
        None, description="Whether it stays within a radius, or searches for the smallest perturbation."
    )

    def matches(self, card: Card) -> bool:
        """Whether a card fits every filter."""
        asked = self.model_dump(exclude_none=True, exclude={"norm"})
        alike = all(card[name] == value for name, value in asked.items())
        return alike and (self.norm is None or self.norm in card["norms"])


def router_of(kind: Kind) -> APIRouter:
    """All routes below /v1/attacks, or /v1/certificates."""
    router = APIRouter(tags=[f"{kind}s"])
    for method in catalogue(kind).values():
        _add_submission(router, method)
    _add_cards(router, kind)
    return router


@cache
def _cards(kind: Kind) -> dict[str, Card]:
    return {name: build_card(method) for name, method in catalogue(kind).items()}


def _add_submission(router: APIRouter, method: type[Method]) -> None:
    name = method.info.name
    router.add_api_route(
        f"/v1/{method.kind}s/{name}",
        _build_endpoint(method),
        methods=["POST"],
        dependencies=[submitter],
        operation_id=f"run_{name}",
        summary=method.info.title,
        description=inspect.cleandoc(method.__doc__ or ""),
        status_code=202,
        response_model=schemas.Job,
        responses=operations.describe_responses(png=method.kind == "attack", example=_EXAMPLES[method.kind]),
        openapi_extra=operations.describe_submission(
            request_fields(method), method, example={**_MODEL, **operations.example_parameters(method)}
        ),
    )


def _build_endpoint(method: type[Method]) -> Endpoint:
    async def submit(request: Request, backend: Tenant, preferences: Preferences) -> Response:
        check = partial(
            prepare_method,
            method,
            settings=backend.settings,
            store=backend.models,
            decoders=backend.decoders.of(backend.ledger.tenant),
        )
        return await acceptance.submit(request, backend, preferences, check)

    return submit


def _add_cards(router: APIRouter, kind: Kind) -> None:
    here = f"/v1/{kind}s"

    def list_cards(
        request: Request,
        response: Response,
        wanted: Annotated[MethodFilters, Query()],
        limit: Limit = 200,
        cursor: Cursor = None,
    ) -> Page[Card]:
        page = paginate(
            {name: one for name, one in _cards(kind).items() if wanted.matches(one)}, limit, cursor
        )
        link_next(request, response, page.cursor)
        return page

    def get_card(name: Name) -> Card:
        return _cards(kind)[find(name, kind).info.name]

    def unknown(name: str) -> None:
        find(name, kind)

    shown = next(iter(_cards(kind).values()), {"name": "…"})
    router.add_api_route(
        here,
        list_cards,
        methods=["GET"],
        dependencies=[reader],
        operation_id=f"list_{kind}s",
        summary=f"All {kind}s",
        description="Their cards: text, taxonomy, paper, JSON Schema of the parameters, example.",
        responses={200: examples.page(shown), **problems.responses(422)},
    )
    router.add_api_route(
        here + "/{name}",
        get_card,
        methods=["GET"],
        dependencies=[reader],
        operation_id=f"get_{kind}",
        summary=f"The card of one {kind}",
        description="Text, taxonomy, paper, JSON Schema of the parameters, example.",
        responses={200: examples.content(shown), **problems.responses(404)},
    )
    router.add_api_route(
        here + "/{name}", unknown, methods=["POST"], dependencies=[submitter], include_in_schema=False
    )


predictions = APIRouter(tags=["predictions"], dependencies=[submitter])


@predictions.post(
    "/v1/predictions",
    operation_id="predict",
    summary="Predict the class of an image",
    status_code=202,
    response_model=schemas.Job,
    responses=operations.describe_responses(png=False),
    openapi_extra=operations.describe_submission(CommonFields, Predict, example={**_MODEL, "top": 3}),
)
async def predict(request: Request, backend: Tenant, preferences: Preferences) -> Response:
    """The most likely classes with their confidences; a prediction is a job too.

    With `defence=smoothing`, `smoothed` in the result is the class that most of `n` noisy copies vote for, or
    an abstention where the difference between the first two may be due to chance.
    """
    check = partial(
        prepare_prediction,
        settings=backend.settings,
        store=backend.models,
        decoders=backend.decoders.of(backend.ledger.tenant),
    )
    return await acceptance.submit(request, backend, preferences, check)
