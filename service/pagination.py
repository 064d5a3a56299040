"""Pages of lists: `limit` items, and a cursor for the next page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from touchstone.errors import InvalidCursor
from touchstone.ledger.search import PAGE_BYTES

Item = TypeVar("Item")

Limit = Annotated[int, Query(ge=1, le=200, description="The most items of a page.")]
Cursor = Annotated[
    str | None, Query(max_length=200, description="Where to go on: `cursor` of the page before.")
]

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _check_zone(value: Any) -> Any:
    if isinstance(value, str) and not _RFC_3339.fullmatch(value):
        raise PydanticCustomError(
            "moment",
            "expected a time and its zone, like 2026-11-22T09:30:00Z (in a URL, + is written %2B)",
        )
    return value


Moment = Annotated[datetime, BeforeValidator(_check_zone)]
"""A time in RFC 3339; one without a zone is refused."""


class Page(BaseModel, Generic[Item]):
    """Some items of a list."""

    items: list[Item]
    cursor: str | None = Field(description="Where the next page begins; null on the last page.")


def paginate(
    items: Mapping[str, Item],
    limit: int,
    cursor: str | None,
    size: Callable[[Item], int] = lambda _: 0,
) -> Page[Any]:
    """A page of a list, after the item whose name is the cursor. It ends early once its items have
    `PAGE_BYTES`; those that are gone when they are read are left out.
    """
    names = list(items)
    if cursor is not None and cursor not in items:
        raise InvalidCursor(
            "cursor: it was not issued for this list; start again without a cursor", field="cursor"
        )
    start = names.index(cursor) + 1 if cursor is not None else 0
    page: list[Item] = []
    room, last = PAGE_BYTES, ""
    for last in names[start : start + limit]:
        with suppress(KeyError):
            page.append(items[last])
            room -= size(page[-1])
        if room <= 0:
            break
    return Page(items=page, cursor=last if last and last != names[-1] else None)


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """Add a `Link` header that names the next page."""
    if cursor is not None:
        query = urlencode({**request.query_params, "cursor": cursor})
        response.headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
