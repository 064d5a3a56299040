"""The schema of the blobs, and who refuses to start with data of a newer version."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from service import __main__ as api
from touchstone.errors import StartError
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.schema import SCHEMA_KEY
from touchstone.settings import Settings
from touchstone.storage.blobs import FolderBlobs, open_blobs
from touchstone.storage.schema import CURRENT, check_schemas
from touchstone.supervisor import up
from workers import __main__ as worker


@pytest.mark.parametrize("url", [None, "memory:///prefix"])
def test_schema_is_written_once(settings: Settings, ledger: Ledger, url: str | None) -> None:
    blobs = open_blobs(settings.model_copy(update={"blobs_url": url}))
    check_schemas(ledger, blobs)
    assert blobs.schema_version(CURRENT + 7) == CURRENT
    assert list(blobs.list_older_than(-60)) == []


@pytest.mark.parametrize("written", ["2", "two"])
def test_newer_blobs_are_refused(ledger: Ledger, tmp_path: Path, written: str) -> None:
    (tmp_path / "schema").write_text(written)
    with pytest.raises(StartError, match=r"storage of blobs has schema .* reads schemas up to 1"):
        check_schemas(ledger, FolderBlobs(tmp_path))


def test_blobs_that_cannot_be_read_do_not_keep_a_process_from_starting(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    check_schemas(ledger, FolderBlobs(tmp_path / "file"))


def test_every_process_refuses_a_newer_ledger(
    settings: Settings, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.set(SCHEMA_KEY, 99)
    for name, value in (("HOME", settings.home), ("REDIS_URL", settings.redis_url)):
        monkeypatch.setenv(f"TOUCHSTONE_{name}", str(value))
    assert worker.main() == 1
    assert api.main() == 1
    lines: list[str] = []
    assert up.serve(settings, lines.append) == 1
    assert "the ledger has schema 99" in lines[-1]
