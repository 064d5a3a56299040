"""Lists come in pages: `limit` items, and a cursor to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from pydantic import BaseModel, Field

from touchstone.errors import InvalidCursor

Item = TypeVar("Item")

Limit = Annotated[int, Query(ge=1, le=200, description="The most items of a page.")]
Cursor = Annotated[
    str | None, Query(max_length=200, description="Where to go on: `cursor` of the page before.")
]


class Page(BaseModel, Generic[Item]):
    """Some items of a list."""

    items: list[Item]
    cursor: str | None = Field(description="Where the next page begins; null on the last page.")


def cut(items: Mapping[str, Any], limit: int, cursor: str | None) -> Page[Any]:
    """A page of a list that is at hand, after the name that is the cursor."""
    names = list(items)
    if cursor is not None and cursor not in items:
        raise InvalidCursor(
            "cursor: not one that this list gave out; start again without a cursor", field="cursor"
        )
    start = names.index(cursor) + 1 if cursor is not None else 0
    page = names[start : start + limit]
    more = start + limit < len(names)
    return Page(items=[items[name] for name in page], cursor=page[-1] if more else None)


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """Name the next page in a `Link` header too."""
    if cursor is not None:
        query = urlencode({**request.query_params, "cursor": cursor})
        response.headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
