"""The ledger for the operator's commands, whether the service is running or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from touchstone.ledger.ledger import Ledger
    from touchstone.settings import Settings

Home = Annotated[Path | None, typer.Option(help="The data folder of the service.")]


def read_settings(home: Path | None) -> Settings:
    """The settings, for another home if one is given."""
    from touchstone.settings import Settings  # noqa: PLC0415 - reads the environment

    settings = Settings()
    return settings if home is None else settings.model_copy(update={"home": home.resolve()})


@contextmanager
def open_ledger(home: Path | None) -> Iterator[Ledger]:
    """Open the ledger of the settings, or of another home."""
    from touchstone.ledger.ledger import Ledger  # noqa: PLC0415 - other commands do not need it
    from touchstone.supervisor.valkey import running_valkey  # noqa: PLC0415 - starts processes

    settings = read_settings(home)
    with running_valkey(settings) as url:
        ledger = Ledger(url, settings)
        try:
            ledger.schema.check()
            yield ledger
        finally:
            ledger.close()
