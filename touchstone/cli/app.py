"""The command line `touchstone`: the service, and the same methods without it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import touchstone
from touchstone.cli import backup, catalogue, keys, methods, tenants
from touchstone.cli.console import err, out
from touchstone.cli.methods import OWN_FLAGS
from touchstone.cli.register import register
from touchstone.cli.train import train
from touchstone.errors import Failure, StartError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """Run the command line; a failure prints one line to stderr and exits with 2."""
    try:
        app()
    except Failure as failure:
        err.print(f"[red]{failure.code}[/]: {failure.detail}", highlight=False)
        raise SystemExit(2) from None
    except StartError as error:
        err.print(f"[red]not started[/]: {error}", highlight=False)
        raise SystemExit(2) from None


def _print_version(requested: bool) -> None:
    if requested:
        out.print(f"touchstone {touchstone.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Test how robust an image classifier is."""


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one.")] = None,
    home: Annotated[Path | None, typer.Option(help="The folder for all data.")] = None,
    api: Annotated[int | None, typer.Option(help="API processes on that address.", min=1, max=64)] = None,
) -> None:
    """Serve until Ctrl-C: the API, a worker and an embedded Valkey."""
    from touchstone.settings import Settings  # noqa: PLC0415 - reads the environment
    from touchstone.supervisor.up import serve  # noqa: PLC0415 - starts processes

    chosen = {"host": host, "port": port, "home": home and home.resolve(), "api_processes": api}
    settings = Settings().model_copy(
        update={key: value for key, value in chosen.items() if value is not None}
    )
    raise typer.Exit(serve(settings, lambda line: out.print(line, highlight=False)))


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("demo"),
) -> None:
    """Start the service, attack a photo through it, show the result, and stop the service."""
    from touchstone.cli.demo import run  # noqa: PLC0415 - starts processes

    run(folder, out)


app.command(context_settings=OWN_FLAGS)(methods.attack)
app.command(context_settings=OWN_FLAGS)(methods.certify)
app.command()(methods.check)
app.command()(catalogue.attacks)
app.command()(catalogue.certificates)
app.command()(catalogue.models)
app.command()(register)
app.command(context_settings=OWN_FLAGS)(train)
app.command()(up)
app.command()(demo)
app.command("backup")(backup.create)
app.command()(backup.restore)
app.add_typer(tenants.app, name="tenants")
app.add_typer(keys.app, name="keys")
