"""`touchstone tenants …`: what each tenant may use."""

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

app = typer.Typer(no_args_is_help=True, help="What each tenant may use; the settings say what is usual.")
out = Console()

NO_BOUND = "none"

Name = Annotated[str, typer.Argument(help="A tenant; `local` is whoever needs no key.")]


def quota_option(what: str) -> typer.models.OptionInfo:
    """A flag that takes a number, or `none`."""
    option: typer.models.OptionInfo = typer.Option(help=f"{what}; `{NO_BOUND}` for no bound.")
    return option


@app.command("list")
def list_tenants(home: Home = None) -> None:
    """List the tenants that may use more or less than is usual, how many of their jobs wait, and how many
    bytes they hold. Requests and submissions are those of a minute.
    """
    table = Table("tenant", "wait", "hold", "may wait", "passes a day", "requests", "submissions", "bytes")
    with open_ledger(home) as ledger:
        for name, allowed in ledger.quotas.all().items():
            waiting, stored = ledger.queue(name).depth, ledger.quotas.stored_bytes(name)
            table.add_row(escape(name), f"{waiting:,}", f"{stored:,}", *_format_quota(allowed))
        table.add_row("[dim]all others[/]", "", "", *_format_quota(ledger.quotas.default_for("")))
    out.print(table)


@app.command("set")
def set_quota(  # noqa: PLR0917 - each is an option of the command line
    name: Name,
    waiting: Annotated[str | None, quota_option("Jobs that may wait")] = None,
    passes: Annotated[str | None, quota_option("Passes that its jobs may ask for in a day (UTC)")] = None,
    requests: Annotated[str | None, quota_option("Requests a minute that only read")] = None,
    submissions: Annotated[str | None, quota_option("Requests a minute that start or end something")] = None,
    storage: Annotated[str | None, quota_option("Bytes that its jobs and models may hold")] = None,
    home: Home = None,
) -> None:
    """Let a tenant use more or less than is usual, within a second; what is not said stays as it is."""
    said = {"waiting": waiting, "passes": passes, "requests": requests, "submissions": submissions}
    said["storage"] = storage
    numbers = {field: _parse_number(text, field) for field, text in said.items() if text is not None}
    with open_ledger(home) as ledger:
        before = ledger.quotas.of(name)
        ledger.quotas.set(name, before.model_copy(update=numbers))
    list_tenants(home)


@app.command()
def reset(name: Name, home: Home = None) -> None:
    """Let a tenant use what is usual again."""
    with open_ledger(home) as ledger:
        ledger.quotas.set(name, None)
    list_tenants(home)


def _parse_number(text: str, field: str) -> int | None:
    if text == NO_BOUND:
        return None
    if not text.isascii() or not text.isdigit() or (int(text) == 0 and field in ("requests", "submissions")):
        raise InvalidParameter(f"--{field}: {text[:40]!r} is no number; 1000, or {NO_BOUND} for no bound")
    return int(text)


def _format_quota(quota: Quota) -> list[str]:
    return ["-" if value is None else f"{value:,}" for value in quota.model_dump().values()]
