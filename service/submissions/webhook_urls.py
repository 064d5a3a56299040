"""URLs that clients want something sent to, as fields of requests."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from touchstone.errors import AddressRefused
from touchstone.net.outbound import MAX_URL, OutboundClient
from touchstone.settings import Settings

Url = Annotated[str, Field(min_length=1, max_length=MAX_URL)]
"""Where something is to be sent."""

WEBHOOK: Any = Field(
    None,
    description="An https URL that is told when the job has ended; `POST /v1/webhooks/secret` gives the "
    "secret that signs what is sent there.",
)
"""The field of a submission."""


def check_webhook_url(url: str | None, settings: Settings, *, field: str = "webhook") -> None:
    """Raise `AddressRefused` for a URL to which nothing could ever be sent; resolves no name."""
    if url is None:
        return
    try:
        OutboundClient(settings.outgoing_allow).check_url(url)
    except AddressRefused as refused:
        raise AddressRefused(f"{field}: {refused.detail.removeprefix('url: ')}", field=field) from None
