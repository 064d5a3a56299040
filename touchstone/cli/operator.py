"""The ledger as the operator's commands reach it, whether the service runs or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from touchstone.ledger.ledger import Ledger

Home = Annotated[Path | None, typer.Option(help="The folder of the service, which holds its ledger.")]


@contextmanager
def open_ledger(home: Path | None) -> Iterator[Ledger]:
    """The ledger of the settings, or of another home."""
    from touchstone.ledger.ledger import Ledger  # noqa: PLC0415 - the other commands do without it
    from touchstone.settings import Settings  # noqa: PLC0415 - reads the environment
    from touchstone.supervisor.valkey import running_valkey  # noqa: PLC0415 - starts processes

    chosen = Settings()
    if home is not None:
        chosen = chosen.model_copy(update={"home": home.resolve()})
    with running_valkey(chosen) as url:
        ledger = Ledger(url, chosen)
        try:
            yield ledger
        finally:
            ledger.close()
