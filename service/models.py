"""The models that can be tried, as their manifests tell of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from service import examples, problems
from service.pages import Cursor, Limit, Page, cut, link_next
from touchstone.models import zoo

router = APIRouter(tags=["models"])

Card = dict[str, Any]

_CARD = {
    "id": "fashion-mnist-cnn",
    "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "architecture": "small-cnn",
    "input": {"channels": 1, "height": 28, "width": 28, "resize": None, "interpolation": "bilinear"},
    "classes": ["T-shirt/top", "Trouser"],
    "licence": "MIT",
}


@router.get(
    "/v1/models",
    operation_id="list_models",
    summary="All models",
    responses={200: examples.page(_CARD), **problems.responses(422)},
)
def list_models(
    request: Request, response: Response, limit: Limit = 200, cursor: Cursor = None
) -> Page[Card]:
    """Identity, input, classes, accuracy, origin and licence of each."""
    page = cut({id_: manifest.card() for id_, manifest in zoo.manifests().items()}, limit, cursor)
    link_next(request, response, page.cursor)
    return page


@router.get(
    "/v1/models/{id}",
    operation_id="get_model",
    summary="One model",
    responses={200: examples.content(_CARD), **problems.responses(404)},
)
def get_model(
    id_: Annotated[
        str,
        Path(
            alias="id",
            description="A model's id.",
            examples=["fashion-mnist-cnn"],
            json_schema_extra={"pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"},
        ),
    ],
) -> Card:
    """Identity, input, classes, accuracy, origin and licence."""
    return zoo.manifest(id_).card()
