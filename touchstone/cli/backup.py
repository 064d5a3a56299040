"""`touchstone backup` and `touchstone restore`: all data of a service in a folder, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from touchstone.cli.console import err, out
from touchstone.cli.operator import Home, read_settings

NewFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a backup.")]


def create(folder: NewFolder, home: Home = None) -> None:
    """Copy all jobs, models, keys and files into a folder, whether the service is running or not."""
    from touchstone.backup.backup import create_backup  # noqa: PLC0415 - loaded only here
    from touchstone.supervisor.valkey import running_valkey  # noqa: PLC0415 - starts processes

    settings = read_settings(home)
    with running_valkey(settings) as url:
        made = create_backup(settings, url, folder)
    size = sum(made.blobs.values())
    out.print(
        f"Saved {made.keys:,} keys and {len(made.blobs):,} files of {size:,} bytes to {folder}",
        highlight=False,
    )
    if made.missing:
        err.print(f"{len(made.missing):,} files were missing: {DELETED}", highlight=False)


DELETED = "their jobs were deleted more than ten minutes before they were copied, or the storage is damaged"


def restore(folder: Folder, home: Home = None) -> None:
    """Fill an empty home, or an empty server and bucket, from a backup. Jobs that ran are queued again."""
    from touchstone.backup.backup import restore_backup  # noqa: PLC0415 - loaded only here
    from touchstone.supervisor.valkey import running_valkey  # noqa: PLC0415 - starts processes

    settings = read_settings(home)
    with running_valkey(settings) as url:
        made = restore_backup(settings, url, folder)
    out.print(
        f"Restored {made.keys:,} keys and {len(made.blobs):,} files of {made.made_at:%Y-%m-%d %H:%M} UTC",
        highlight=False,
    )
