"""`touchstone tenants`: the quotas of each tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from touchstone.cli.operator import Home, open_ledger
from touchstone.errors import InvalidParameter

if TYPE_CHECKING:
    from touchstone.ledger.quotas import Quota

app = typer.Typer(no_args_is_help=True, help="Quotas of each tenant; the settings give the defaults.")
out = Console()

NO_LIMIT = "none"

Name = Annotated[str, typer.Argument(help="A tenant; `local` is the tenant of requests without a key.")]


def quota_option(description: str) -> typer.models.OptionInfo:
    """A flag that takes a number, or `none`."""
    option: typer.models.OptionInfo = typer.Option(help=f"{description}; `{NO_LIMIT}` for no limit.")
    return option


@app.command("list")
def list_tenants(home: Home = None) -> None:
    """List the tenants whose quotas differ from the defaults, with their waiting jobs and stored bytes.

    Requests and submissions are counted per minute.
    """
    table = Table("tenant", "wait", "hold", "may wait", "passes a day", "requests", "submissions", "bytes")
    with open_ledger(home) as ledger:
        for name, quota in ledger.quotas.all().items():
            waiting, stored = ledger.queue(name).depth, ledger.quotas.stored_bytes(name)
            table.add_row(escape(name), f"{waiting:,}", f"{stored:,}", *_format_quota(quota))
        table.add_row("[dim]all others[/]", "", "", *_format_quota(ledger.quotas.default_for("")))
    out.print(table)


@app.command("set")
def set_quota(  # noqa: PLR0917 - each is an option of the command line
    name: Name,
    waiting: Annotated[str | None, quota_option("Jobs that may wait")] = None,
    passes: Annotated[
        str | None, quota_option("Forward and backward passes of its jobs in a day (UTC)")
    ] = None,
    requests: Annotated[str | None, quota_option("Requests a minute that only read")] = None,
    submissions: Annotated[str | None, quota_option("Requests a minute that start or end something")] = None,
    storage: Annotated[str | None, quota_option("Bytes that its jobs and models may store")] = None,
    home: Home = None,
) -> None:
    """Set quotas of a tenant, effective within a second; quotas that are not named stay."""
    given = {"waiting": waiting, "passes": passes, "requests": requests, "submissions": submissions}
    given["storage"] = storage
    numbers = {field: _parse_number(text, field) for field, text in given.items() if text is not None}
    with open_ledger(home) as ledger:
        before = ledger.quotas.of(name)
        ledger.quotas.set(name, before.model_copy(update=numbers))
    list_tenants(home)


@app.command()
def reset(name: Name, home: Home = None) -> None:
    """Reset a tenant to the default quotas."""
    with open_ledger(home) as ledger:
        ledger.quotas.set(name, None)
    list_tenants(home)


def _parse_number(text: str, field: str) -> int | None:
    if text == NO_LIMIT:
        return None
    if not text.isascii() or not text.isdigit() or (int(text) == 0 and field in ("requests", "submissions")):
        raise InvalidParameter(f"--{field}: {text[:40]!r} is no number; 1000, or {NO_LIMIT} for no limit")
    return int(text)


def _format_quota(quota: Quota) -> list[str]:
    return ["-" if value is None else f"{value:,}" for value in quota.model_dump().values()]
