"""`touchstone tenants …`: what each tenant may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from touchstone.errors import InvalidParameter

if TYPE_CHECKING:
    from touchstone.jobs.tenants import Allowance, Tenants

app = typer.Typer(no_args_is_help=True, help="What each tenant may use; the settings say what is usual.")
out = Console()

NO_BOUND = "none"

Name = Annotated[str, typer.Argument(help="A tenant; `local` is whoever needs no key.")]


def bound(what: str) -> typer.models.OptionInfo:
    """A flag that takes a number, or `none`."""
    option: typer.models.OptionInfo = typer.Option(help=f"{what}; `{NO_BOUND}` for no bound.")
    return option


@app.command("list")
def show() -> None:
    """List the tenants that may use more or less than is usual, and those whose jobs wait."""
    with _tenants() as tenants:
        own, waiting = tenants.all(), tenants.waiting()
        table = Table(
            "tenant", "waits", "may wait", "passes a day", "requests a minute", "submissions a minute"
        )
        for name in sorted({*own, *waiting}):
            allowed = own.get(name) or tenants.usual(name)
            bounds = [_shown(value) for value in allowed.model_dump().values()]
            table.add_row(escape(name), f"{waiting.get(name, 0):,}", *bounds)
        table.add_row("[dim]usual[/]", "", *map(_shown, tenants.usual("").model_dump().values()))
    out.print(table)


@app.command("set")
def change(
    name: Name,
    waiting: Annotated[str | None, bound("Jobs that may wait")] = None,
    passes: Annotated[str | None, bound("Passes that its jobs may ask for in a day (UTC)")] = None,
    requests: Annotated[str | None, bound("Requests a minute that only read")] = None,
    submissions: Annotated[str | None, bound("Requests a minute that start or end something")] = None,
) -> None:
    """Let a tenant use more or less than is usual, within a second; what is not said stays as it is."""
    said = {"waiting": waiting, "passes": passes, "requests": requests, "submissions": submissions}
    numbers = {field: _number(text, field) for field, text in said.items() if text is not None}
    with _tenants() as tenants:
        before = tenants.all().get(name) or tenants.usual(name)
        tenants.set(name, _allowance(before, numbers))
    show()


@app.command()
def reset(name: Name) -> None:
    """Let a tenant use what is usual again."""
    with _tenants() as tenants:
        tenants.set(name, None)
    show()


@contextmanager
def _tenants() -> Iterator[Tenants]:
    from touchstone.embedded import ledger_url  # noqa: PLC0415 - the other commands do without the ledger
    from touchstone.jobs.ledger import Ledger  # noqa: PLC0415 - likewise
    from touchstone.settings import Settings  # noqa: PLC0415 - reads the environment

    settings = Settings()
    ledger = Ledger(ledger_url(settings), settings)
    yield ledger.tenants
    ledger.close()


def _allowance(before: Allowance, numbers: dict[str, int | None]) -> Allowance:
    return type(before).model_validate({**before.model_dump(), **numbers})


def _number(text: str, field: str) -> int | None:
    if text == NO_BOUND:
        return None
    if not text.isascii() or not text.isdigit() or (int(text) == 0 and field in ("requests", "submissions")):
        raise InvalidParameter(f"--{field}: {text[:40]!r} is no number; 1000, or {NO_BOUND} for no bound")
    return int(text)


def _shown(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
