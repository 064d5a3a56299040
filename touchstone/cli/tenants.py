"""`touchstone tenants …`: what each tenant may use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from touchstone.cli.operator import Home, opened
from touchstone.errors import InvalidParameter

if TYPE_CHECKING:
    from touchstone.ledger.quotas import Allowance

app = typer.Typer(no_args_is_help=True, help="What each tenant may use; the settings say what is usual.")
out = Console()

NO_BOUND = "none"

Name = Annotated[str, typer.Argument(help="A tenant; `local` is whoever needs no key.")]


def bound(what: str) -> typer.models.OptionInfo:
    """A flag that takes a number, or `none`."""
    option: typer.models.OptionInfo = typer.Option(help=f"{what}; `{NO_BOUND}` for no bound.")
    return option


@app.command("list")
def show(home: Home = None) -> None:
    """List the tenants that may use more or less than is usual, how many of their jobs wait, and how many
    bytes they hold. Requests and submissions are those of a minute.
    """
    table = Table("tenant", "wait", "hold", "may wait", "passes a day", "requests", "submissions", "bytes")
    with opened(home) as ledger:
        for name, allowed in ledger.allowances.all().items():
            waiting, stored = ledger.queue(name).depth, ledger.allowances.stored(name)
            table.add_row(escape(name), f"{waiting:,}", f"{stored:,}", *_bounds(allowed))
        table.add_row("[dim]all others[/]", "", "", *_bounds(ledger.allowances.usual("")))
    out.print(table)


@app.command("set")
def change(  # noqa: PLR0917 - each is an option of the command line
    name: Name,
    waiting: Annotated[str | None, bound("Jobs that may wait")] = None,
    passes: Annotated[str | None, bound("Passes that its jobs may ask for in a day (UTC)")] = None,
    requests: Annotated[str | None, bound("Requests a minute that only read")] = None,
    submissions: Annotated[str | None, bound("Requests a minute that start or end something")] = None,
    storage: Annotated[str | None, bound("Bytes that its jobs and models may hold")] = None,
    home: Home = None,
) -> None:
    """Let a tenant use more or less than is usual, within a second; what is not said stays as it is."""
    said = {"waiting": waiting, "passes": passes, "requests": requests, "submissions": submissions}
    said["storage"] = storage
    numbers = {field: _number(text, field) for field, text in said.items() if text is not None}
    with opened(home) as ledger:
        before = ledger.allowances.of(name)
        ledger.allowances.set(name, before.model_copy(update=numbers))
    show(home)


@app.command()
def reset(name: Name, home: Home = None) -> None:
    """Let a tenant use what is usual again."""
    with opened(home) as ledger:
        ledger.allowances.set(name, None)
    show(home)


def _number(text: str, field: str) -> int | None:
    if text == NO_BOUND:
        return None
    if not text.isascii() or not text.isdigit() or (int(text) == 0 and field in ("requests", "submissions")):
        raise InvalidParameter(f"--{field}: {text[:40]!r} is no number; 1000, or {NO_BOUND} for no bound")
    return int(text)


def _bounds(allowed: Allowance) -> list[str]:
    return ["-" if value is None else f"{value:,}" for value in allowed.model_dump().values()]
