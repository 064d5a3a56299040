"""Webhook URLs as fields of requests."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from touchstone.errors import AddressRefused
from touchstone.net.outbound import MAX_URL, OutboundClient
from touchstone.settings import Settings

Url = Annotated[str, Field(min_length=1, max_length=MAX_URL)]
"""A URL that receives messages."""

WEBHOOK: Any = Field(
    None,
    description="An https URL that is notified when the job has ended; `POST /v1/webhooks/secret` gives "
    "the secret that signs the messages.",
)
"""The field of a submission."""


def check_webhook_url(url: str | None, settings: Settings, *, field: str = "webhook") -> None:
    """Raise `AddressRefused` for a URL that can never be reached; resolves no name."""
    if url is None:
        return
    try:
        OutboundClient(settings.outgoing_allow).check_url(url)
    except AddressRefused as refused:
        raise AddressRefused(f"{field}: {refused.detail.removeprefix('url: ')}", field=field) from None
