"""`touchstone keys`: create, list and revoke API keys, whether the service is running or not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from touchstone.cli.operator import Home, open_ledger
from touchstone.ledger.records import LOCAL

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")
out = Console()
err = Console(stderr=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="The purpose of the key.")],
    scope: Annotated[
        str, typer.Option(help="read, submit or admin; each includes the previous ones.")
    ] = "submit",
    tenant: Annotated[str, typer.Option(help="The tenant whose jobs and models it can access.")] = LOCAL,
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires; default: never.")] = None,
    home: Home = None,
) -> None:
    """Create a key and print it; it is not shown again."""
    from pydantic import ValidationError  # noqa: PLC0415 - loaded only here, as is the ledger

    from touchstone.ledger.api_keys import KeyRequest  # noqa: PLC0415
    from touchstone.methods import invalid_parameter  # noqa: PLC0415

    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    try:
        request = KeyRequest.model_validate(
            {"name": name, "scope": scope, "tenant": tenant, "expires_at": expires_at}
        )
    except ValidationError as error:
        raise invalid_parameter(error) from None
    with open_ledger(home) as ledger:
        issued = ledger.keys.create(request)
    err.print(
        f"{issued.key.scope} for {issued.key.tenant}; store it safely, it is not shown again:",
        highlight=False,
    )
    typer.echo(issued.text)


@app.command(name="list")
def list_keys(home: Home = None) -> None:
    """List the keys, without their secrets."""
    with open_ledger(home) as ledger:
        keys = ledger.keys.all()
    table = Table("id", "name", "tenant", "scope", "expires", "last used")
    for key in keys:
        table.add_row(
            key.id,
            escape(key.name),
            key.tenant,
            key.scope,
            _format_time(key.expires_at),
            _format_time(key.used_at),
        )
    out.print(table)


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="The id of a key.")], home: Home = None) -> None:
    """Revoke a key, immediately and permanently."""
    with open_ledger(home) as ledger:
        ledger.keys.revoke(key)
    err.print(f"Revoked {key}", highlight=False)


def _format_time(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M}"
