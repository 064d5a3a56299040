"""API keys: what is kept of them, HTTP and the command line, and how soon one that was revoked is none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from api_tests.support.fake_service import Api, problem, serving
from api_tests.support.wait import wait_until
from touchstone.errors import (
    InvalidParameter,
    KeyExpired,
    KeyInvalid,
    LedgerUnavailable,
    StartError,
    UnknownKey,
)
from touchstone.ledger import address
from touchstone.ledger.api_keys import KeyRequest, check_address
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings
from touchstone.supervisor import valkey as embedded

ROOT = Path(__file__).parents[2]


def asked(**changes: Any) -> KeyRequest:
    return KeyRequest.model_validate({"name": "ci", **changes})


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture
def guarded(settings: Settings) -> Iterator[Api]:
    with serving(settings.model_copy(update={"require_keys": True})) as api:
        yield api


def test_a_key_is_good_for_what_was_asked(ledger: Ledger) -> None:
    issued = ledger.keys.create(asked(tenant="acme", scope="read"))
    known = ledger.keys.check(issued.text)
    assert (known.id, known.tenant, known.scope, known.expires_at) == (issued.key.id, "acme", "read", None)
    assert re.fullmatch(rf"ts_{known.id}_[0-9a-f]{{64}}", issued.text)


def test_the_ledger_holds_nothing_that_opens_anything(ledger: Ledger, valkey: str) -> None:
    text = ledger.keys.create(asked()).text
    server = connect(valkey)
    kept: Any = [server.hgetall(key) for key in server.scan_iter("ts:access:*")]
    assert kept
    assert text.rpartition("_")[2] not in repr(kept)
    with pytest.raises(KeyInvalid):
        ledger.keys.check(f"ts_{kept[0]['id']}_{kept[0]['hash']}")


@pytest.mark.parametrize("spoil", [str.upper, lambda text: text[:-1], lambda text: text + "0", lambda _: ""])
def test_a_key_that_is_not_quite_right_is_none(ledger: Ledger, spoil: Any) -> None:
    text = ledger.keys.create(asked()).text
    other = ledger.keys.create(asked()).text
    for wrong in (spoil(text), text[:20] + other[20:], "ts_é_" + "0" * 64):
        with pytest.raises(KeyInvalid):
            ledger.keys.check(wrong)


def test_a_key_expires_by_the_ledger_s_clock(ledger: Ledger, valkey: str) -> None:
    issued = ledger.keys.create(asked(expires_at=datetime.now(UTC) + timedelta(hours=1)))
    assert ledger.keys.stands(issued.key.id)
    connect(valkey).hset(f"ts:access:{issued.key.id}", "expires_at", 1)
    with pytest.raises(KeyExpired):
        ledger.keys.check(issued.text)
    assert not ledger.keys.stands(issued.key.id)
    with pytest.raises(InvalidParameter):
        ledger.keys.create(asked(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))


def test_a_use_is_noted_once_a_minute(ledger: Ledger, valkey: str) -> None:
    issued = ledger.keys.create(asked())
    assert ledger.keys.check(issued.text).used_at is None
    first = ledger.keys.check(issued.text).used_at
    assert first is not None
    assert ledger.keys.check(issued.text).used_at == first
    connect(valkey).hset(f"ts:access:{issued.key.id}", "used_at", 1)
    ledger.keys.check(issued.text)
    assert ledger.keys.all()[0].used_at >= first  # type: ignore[operator]


def test_each_change_may_be_sent_twice(ledger: Ledger, valkey: str) -> None:
    scripts = Scripts(connect(valkey))
    first = scripts.run("tenants/key_create", "an-id", "hash", "ci", "acme", "read", "")
    assert scripts.run("tenants/key_create", "an-id", "hash", "ci", "acme", "read", "") == first
    ledger.keys.revoke("an-id")
    with pytest.raises(UnknownKey):
        ledger.keys.revoke("an-id")
    assert scripts.run("tenants/key_use", "an-id") == 0
    assert not connect(valkey).keys("ts:access*")


def test_keys_over_http(guarded: Api) -> None:
    client, admin = guarded.client, bearer(guarded.ledger.keys.create(asked(scope="admin")).text)
    made = client.post("/v1/keys", json={"name": "ci", "tenant": "acme", "scope": "read"}, headers=admin)
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    key = made.json()
    assert client.get("/v1/jobs", headers=bearer(key["key"])).json()["items"] == []
    listed = client.get("/v1/keys", headers=admin)
    assert [one["name"] for one in listed.json()["items"]] == ["ci", "ci"]
    assert key["key"] not in listed.text
    assert key["key"].rpartition("_")[2] not in listed.text
    assert client.delete(f"/v1/keys/{key['id']}", headers=admin).status_code == 204
    problem(client.get("/v1/jobs", headers=bearer(key["key"])), 401, "key_invalid")
    problem(client.delete(f"/v1/keys/{key['id']}", headers=admin), 404, "unknown_key")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"tenant": "Acme Inc"}, "tenant"),
        ({"tenant": "a b"}, "tenant"),
        ({"scope": "root"}, "scope"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
        ({"more": 1}, "more"),
    ],
)
def test_a_key_that_cannot_be_made(api: Api, changes: dict[str, Any], field: str) -> None:
    problem(api.client.post("/v1/keys", json={"name": "ci", **changes}), 422, "invalid_parameter", field)


def test_a_revoked_key_is_none_in_any_process_at_once(guarded: Api, settings: Settings) -> None:
    issued = guarded.ledger.keys.create(asked())
    with serving(settings.model_copy(update={"require_keys": True})) as other:
        assert other.client.get("/v1/jobs", headers=bearer(issued.text)).status_code == 200
        guarded.ledger.keys.revoke(issued.key.id)
        problem(other.client.get("/v1/jobs", headers=bearer(issued.text)), 401, "key_invalid")


@pytest.mark.parametrize("path", ["/v1/events", "/v1/jobs/{job}/events"])
def test_streams_of_a_revoked_key_end_soon(guarded: Api, path: str) -> None:
    issued = guarded.ledger.keys.create(asked())
    with guarded.worker.resting():
        job = guarded.submit(wait=None, headers=bearer(issued.text)).json()["id"]
        with guarded.client.stream("GET", path.format(job=job), headers=bearer(issued.text)) as response:
            assert response.status_code == 200
            lines = response.iter_lines()
            guarded.ledger.keys.revoke(issued.key.id)
            began = time.monotonic()
            assert not [line for line in lines if "completed" in line]
    assert time.monotonic() - began < 20


def test_without_need_of_keys_one_that_is_sent_counts(api: Api) -> None:
    issued = api.ledger.keys.create(asked(tenant="acme"))
    job = api.submit(headers=bearer(issued.text)).json()["id"]
    assert api.client.get(f"/v1/jobs/{job}", headers=bearer(issued.text)).status_code == 200
    problem(api.client.get(f"/v1/jobs/{job}"), 404, "unknown_job")
    problem(api.client.get("/v1/jobs", headers=bearer("ts_wrong")), 401, "key_invalid")


def test_no_line_of_the_log_holds_a_key(guarded: Api) -> None:
    issued = guarded.ledger.keys.create(asked(tenant="acme"))
    with capture_logs() as lines:
        guarded.client.get("/v1/jobs", headers=bearer(issued.text))
        guarded.client.get("/v1/jobs", headers=bearer(issued.text + "0"))
        guarded.client.get("/healthz")
        wait_until(lambda: len([line for line in lines if line["event"] == "request"]) == 3)
    told = [(line["tenant"], line["key"]) for line in lines if line["event"] == "request"]
    assert told == [("acme", issued.key.id), (None, None), (None, None)]
    assert issued.text.rpartition("_")[2] not in repr(lines)


def test_a_ledger_out_of_reach_is_no_stranger_s_fault(guarded: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise LedgerUnavailable("the ledger cannot be reached")

    monkeypatch.setattr(guarded.ledger.keys._scripts, "run", away)
    problem(
        guarded.client.get("/v1/jobs", headers=bearer("ts_" + "0" * 16 + "_" + "0" * 64)),
        503,
        "ledger_unavailable",
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.org"])
def test_nobody_serves_strangers_without_a_key(ledger: Ledger, settings: Settings, host: str) -> None:
    open_to_all = settings.model_copy(update={"host": host})
    assert open_to_all.needs_keys
    with pytest.raises(StartError, match="touchstone keys create"):
        check_address(open_to_all, ledger.keys)
    check_address(open_to_all.model_copy(update={"require_keys": True}), ledger.keys)
    ledger.keys.create(asked())
    check_address(open_to_all, ledger.keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_the_loopback_needs_none(ledger: Ledger, settings: Settings, host: str) -> None:
    local = settings.model_copy(update={"host": host})
    assert not local.needs_keys
    check_address(local, ledger.keys)


def test_the_process_says_why_it_does_not_start(valkey: str, tmp_path: Path) -> None:
    done = called(
        "-m", "service", TOUCHSTONE_HOST="0.0.0.0", TOUCHSTONE_REDIS_URL=valkey, TOUCHSTONE_HOME=tmp_path
    )
    assert done.returncode == 1
    assert "touchstone keys create NAME --scope admin" in done.stderr


def called(*words: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    whole = {**os.environ, "COLUMNS": "200", **{name: str(value) for name, value in environment.items()}}
    return subprocess.run(
        [sys.executable, *words],
        env=whole,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=ROOT,
    )


def test_the_command_line_makes_the_first_key_before_the_service_runs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = called("-m", "touchstone", "keys", "create", "first", "--scope", "admin", "--home", str(home))
    assert made.returncode == 0, made.stderr
    assert embedded.process_id(address.socket_url(home)) is None, "it left its Valkey running"
    valkey = embedded.start(home)
    try:
        chosen = Settings(home=home, host="0.0.0.0")
        ledger = Ledger(valkey.url, chosen)
        assert ledger.keys.check(made.stdout.strip()).scope == "admin"
        check_address(chosen, ledger.keys)
        listed = called("-m", "touchstone", "keys", "list", TOUCHSTONE_REDIS_URL=valkey.url)
        [key] = ledger.keys.all()
        assert key.id in listed.stdout
        assert made.stdout.strip() not in listed.stdout
        assert (
            called("-m", "touchstone", "keys", "revoke", key.id, TOUCHSTONE_REDIS_URL=valkey.url).returncode
            == 0
        )
        assert ledger.keys.all() == []
        refused = called(
            "-m", "touchstone", "keys", "create", "x", "--scope", "root", TOUCHSTONE_REDIS_URL=valkey.url
        )
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "scope" in refused.stderr
        ledger.close()
    finally:
        valkey.stop()


def test_the_document_s_commands_run(guarded: Api) -> None:
    [script] = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/access.md").read_text(), re.M | re.S)
    script = script.replace(".venv/bin/touchstone", f"{sys.executable} -m touchstone")
    done = subprocess.run(
        ["bash", "-e", "-c", script.replace("http://127.0.0.1:8000", guarded.origin)],
        env={**os.environ, "TOUCHSTONE_REDIS_URL": str(guarded.settings.redis_url), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert '"items":[]' in done.stdout
    assert "vision" in done.stdout
    assert guarded.ledger.keys.all() == []


def test_the_command_line_sends_the_key_of_the_settings(guarded: Api) -> None:
    text = guarded.ledger.keys.create(asked(scope="read")).text
    address = ("-m", "touchstone", "models", "--url", guarded.origin)
    assert "fashion-mnist-cnn" in called(*address, TOUCHSTONE_API_KEY=text).stdout
    refused = called(*address)
    assert refused.returncode == 1
    assert "an API key is needed" in refused.stderr
