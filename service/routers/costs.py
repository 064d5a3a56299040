"""The cost of a job, before it is submitted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service import problems
from service.auth.permissions import reader
from service.dependencies import Tenant
from service.openapi import examples, operations
from service.routers.models import probe_of
from service.state.backend import TenantBackend
from service.submissions import bodies
from service.submissions.validation import CostFields, CostRequest, parse_method_cost, parse_prediction_cost
from touchstone.methods import Kind, Method, catalogue, find, total_cost
from touchstone.methods.memory_price import ImageSize, footprint_of, memory_of
from touchstone.methods.prediction import Predict
from touchstone.models.manifest import Manifest
from touchstone.models.store import ModelStore

_EXAMPLE = {
    "forward": 122,
    "backward": 80,
    "total": 202,
    "limit": 200_000,
    "seconds": 0.08,
    "rows": 20,
    "memory": 88_080_384,
    "memory_limit": 6_442_450_944,
    "upload_factor": 334.4,
}

Check = Callable[[dict[str, str], ModelStore], CostRequest]


class Cost(BaseModel):
    """The most queries of a job, and how long they take."""

    forward: int = Field(description="Images in forward passes, at most.")
    backward: int = Field(description="Images in backward passes, at most.")
    total: int
    limit: int = Field(description="The most that `total` may be at a submission.")
    seconds: float | None = Field(
        description="Time of these queries on an idle worker, as measured at the model's last load; "
        "null without `model`, and for one that was never loaded. Work at the size of the upload is not part "
        "of it: see `upload_factor`."
    )
    rows: int | None = Field(
        description="Tensors in the size of the image that the job may hold at once; null without `width` "
        "and `height`."
    )
    memory: int | None = Field(
        description="Bytes that the job may need for them; null without `width` and `height`."
    )
    memory_limit: int = Field(description="The most that `memory` may be at a submission.")
    upload_factor: float | None = Field(
        description="How many times as many pixels as the network's input the image has: each query works on "
        "both. Null without `model`, `width` and `height`."
    )


def router_of(kind: Kind) -> APIRouter:
    """The costs of all attacks, or of all certificates."""
    router = APIRouter(tags=[f"{kind}s"], dependencies=[reader])
    for method in catalogue(kind).values():
        _add_route(
            router,
            f"/v1/{kind}s/{method.info.name}/cost",
            partial(parse_method_cost, method),
            method,
            name=method.info.name,
        )

    def unknown(name: str) -> None:
        find(name, kind)

    router.add_api_route(f"/v1/{kind}s/{{name}}/cost", unknown, methods=["GET"], include_in_schema=False)
    return router


def prediction_router() -> APIRouter:
    """The cost of predictions."""
    router = APIRouter(tags=["predictions"], dependencies=[reader])
    _add_route(router, "/v1/predictions/cost", parse_prediction_cost, Predict, name="predict")
    return router


def _add_route(router: APIRouter, path: str, check: Check, own: type[Method | Predict], *, name: str) -> None:
    router.add_api_route(
        path,
        _build_endpoint(check),
        methods=["GET"],
        operation_id=f"cost_of_{name}",
        summary=f"The cost of {name}",
        description="The most queries of a job with these parameters, and an estimate of their time. A cost "
        "over the limit is returned, too; its submission would be refused.",
        responses={200: examples.content(_EXAMPLE), **problems.responses(404, 422)},
        openapi_extra=operations.describe_query(CostFields, own),
    )


def _build_endpoint(check: Check) -> Callable[[Request, TenantBackend], Cost]:
    def get_cost(request: Request, backend: Tenant) -> Cost:
        return _estimate(
            backend, check(bodies.unique_fields(request.query_params.multi_items()), backend.models)
        )

    return get_cost


def _estimate(backend: TenantBackend, asked: CostRequest) -> Cost:
    cost, image = total_cost(asked.method), asked.image
    probe = probe_of(backend.ledger, asked.manifest) if asked.manifest else None
    return Cost(
        forward=cost.forward,
        backward=cost.backward,
        total=cost.total,
        limit=backend.settings.cost_limit,
        seconds=probe.seconds(cost.forward, cost.backward) if probe else None,
        rows=footprint_of(asked.method, image).rows(image.values) if image else None,
        memory=memory_of(asked.method, image) if image else None,
        memory_limit=backend.settings.job_memory,
        upload_factor=_upload_factor(image, asked.manifest) if image and asked.manifest else None,
    )


def _upload_factor(image: ImageSize, manifest: Manifest) -> float:
    return max(1.0, image.width * image.height / (manifest.input.width * manifest.input.height))
