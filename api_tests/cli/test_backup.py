"""`touchstone backup` and `touchstone restore`."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from api_tests.support.command_line import run_command
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Submission
from touchstone.ledger.schema import CURRENT, SCHEMA_KEY
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOUCHSTONE_REDIS_URL", str(settings.redis_url))


def test_backup_and_restore_say_what_they_copied(
    ledger: Ledger,
    submission: Submission,
    server: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert submission.image
    settings = Settings(home=tmp_path / "home")
    digest = open_blobs(settings).put(b"PNG")
    image = submission.image.model_copy(update={"digest": digest})
    job, _ = ledger.accept(submission.model_copy(update={"image": image}))
    folder = str(tmp_path / "backup")
    made = run_command(monkeypatch, "backup", folder, "--home", str(settings.home))
    assert (made.code, "keys and 1 files of 3 bytes" in made.out, made.err) == (0, True, "")
    assert not server.exists(SCHEMA_KEY), "a backup before an upgrade changes nothing"

    refused = run_command(monkeypatch, "restore", folder, "--home", str(tmp_path / "new"))
    assert (refused.code, "the ledger is not empty" in refused.err) == (2, True)

    server.flushall()
    restored = run_command(monkeypatch, "restore", folder, "--home", str(tmp_path / "new"))
    assert (restored.code, restored.err) == (0, "")
    assert ledger.read(job.id).status == "queued"
    assert server.get(SCHEMA_KEY) == str(CURRENT)


def test_missing_files_are_named(
    ledger: Ledger, submission: Submission, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger.accept(submission)
    made = run_command(monkeypatch, "backup", str(tmp_path / "backup"), "--home", str(tmp_path))
    assert (made.code, "1 files were missing" in made.err) == (0, True)


def test_commands_refuse_a_newer_ledger(
    server: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.set(SCHEMA_KEY, 99)
    for words in (["keys", "list"], ["tenants", "list"], ["backup", str(tmp_path / "backup")]):
        done = run_command(monkeypatch, *words, "--home", str(tmp_path))
        assert (done.code, "not started: the ledger has schema 99" in done.err) == (2, True)
