"""The embedded Valkey: started, adopted, killed, and never twice on the same files."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from touchstone import errors
from touchstone.ledger import address
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Submission
from touchstone.ledger.server import process_id
from touchstone.settings import Settings
from touchstone.supervisor import valkey as embedded_valkey

Start = Callable[[Path], embedded_valkey.Valkey]


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("v") / "a home of 100 %"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that stop after the test."""
    started: list[embedded_valkey.Valkey] = []

    def keep(home: Path) -> embedded_valkey.Valkey:
        started.append(embedded_valkey.start(home))
        return started[-1]

    yield keep
    for valkey in started:
        valkey.stop()


@pytest.fixture
def short_tempdir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A separate folder for temporary files, with a short name."""
    with tempfile.TemporaryDirectory(prefix="ts") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


def kill(valkey: embedded_valkey.Valkey) -> None:
    pid = process_id(valkey.url)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    embedded_valkey._wait_until_gone(valkey, 5)


def test_valkey_listens_only_on_a_private_socket_and_syncs_every_write(home: Path, start: Start) -> None:
    valkey = start(home)
    config = connect(valkey.url).config_get()
    assert {name: config[name] for name in ("port", "appendonly", "appendfsync", "maxmemory-policy")} == {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
    }
    assert stat.S_IMODE((home / "valkey").stat().st_mode) == 0o700
    valkey.stop()
    assert not valkey.is_alive()


def test_running_valkey_is_adopted_and_stopped(home: Path, start: Start) -> None:
    first = start(home)
    second = start(home)
    assert second.child is None
    assert process_id(second.url) == first.child.pid if first.child else False
    second.stop()
    assert not first.is_alive()
    assert process_id(first.url) is None


def test_concurrent_starts_make_one_valkey(home: Path, start: Start) -> None:
    with ThreadPoolExecutor(6) as pool:
        started = list(pool.map(lambda _: start(home), range(6)))
    assert sum(valkey.child is not None for valkey in started) == 1


def test_accepted_jobs_survive_a_kill_of_valkey(home: Path, start: Start, submission: Submission) -> None:
    """An accepted job is on disk, however the server ends right after its reply."""
    settings = Settings(home=home)
    accepted: list[str] = []
    for _ in range(5):
        valkey = start(home)
        ledger = Ledger(valkey.url, settings)
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ledger.accept, submission) for _ in range(200)]
            answers[40].result()
            kill(valkey)
        accepted += [answer.result()[0].id for answer in answers if answer.exception() is None]
        refused = [answer.exception() for answer in answers if answer.exception() is not None]
        assert all(isinstance(error, errors.LedgerUnavailable) for error in refused)
        ledger.close()
    ledger = Ledger(start(home).url, settings)
    assert len(accepted) >= 5 * 41
    assert {name for name in accepted if ledger.read(name).status == "queued"} == set(accepted)
    ledger.close()


def test_ledger_notices_when_valkey_dies_and_returns(
    home: Path, start: Start, submission: Submission
) -> None:
    valkey = start(home)
    ledger = Ledger(valkey.url, Settings(home=home))
    job, _ = ledger.accept(submission)
    with ledger.watch() as watch:
        kill(valkey)
        with pytest.raises(errors.LedgerUnavailable):
            next(iter(watch))
    with pytest.raises(errors.LedgerUnavailable):
        ledger.ping()
    start(home)
    assert ledger.cancel(job.id).status == "canceled"
    ledger.close()


def test_long_home_path_gets_a_short_private_socket(
    tmp_path: Path, start: Start, short_tempdir: Path
) -> None:
    home = tmp_path / ("long" * 30)
    path = address.socket_path(home)
    assert len(os.fsencode(path)) < 100
    assert path != address.socket_path(tmp_path / ("long" * 31))
    valkey = start(home)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    valkey.stop()


def test_socket_folder_of_someone_else_is_refused(tmp_path: Path, start: Start, short_tempdir: Path) -> None:
    home = tmp_path / ("long" * 30)
    (tmp_path / "elsewhere").mkdir()
    address.socket_path(home).parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.StartError, match="belongs to someone else"):
        start(home)


def test_valkey_that_cannot_start_is_reported_with_its_reason(home: Path, start: Start) -> None:
    (home / "valkey" / "appendonlydir").mkdir(parents=True)
    (home / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(errors.StartError, match=r"did not start: .+"):
        start(home)


def test_home_is_used_by_one_process_at_a_time(home: Path) -> None:
    holder = "import sys, pathlib; from touchstone.supervisor.valkey import exclusive_home\n"
    holder += "with exclusive_home(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(errors.StartError, match="in use by another"),
            embedded_valkey.exclusive_home(home),
        ):
            pass
        other.kill()
        other.wait()
    with embedded_valkey.exclusive_home(home):
        pass


def test_ledger_url_follows_the_settings(tmp_path: Path) -> None:
    assert address.ledger_url(Settings(home=tmp_path, redis_url="redis://there:1/2")) == "redis://there:1/2"
    assert address.ledger_url(Settings(home=tmp_path)) == f"unix://{tmp_path}/valkey/valkey.sock"
