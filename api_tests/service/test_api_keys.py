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

from api_tests.support import command_line
from api_tests.support.fake_service import Api, assert_problem, run_service
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
from touchstone.supervisor import valkey as embedded_valkey

ROOT = Path(__file__).parents[2]


def key_request(**changes: Any) -> KeyRequest:
    return KeyRequest.model_validate({"name": "ci", **changes})


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture
def guarded(settings: Settings) -> Iterator[Api]:
    with run_service(settings.model_copy(update={"require_keys": True})) as api:
        yield api


def test_created_key_has_the_requested_tenant_and_scope(ledger: Ledger) -> None:
    issued = ledger.keys.create(key_request(tenant="acme", scope="read"))
    known = ledger.keys.check(issued.text)
    assert (known.id, known.tenant, known.scope, known.expires_at) == (issued.key.id, "acme", "read", None)
    assert re.fullmatch(rf"ts_{known.id}_[0-9a-f]{{64}}", issued.text)


def test_ledger_stores_no_usable_key(ledger: Ledger, valkey: str) -> None:
    text = ledger.keys.create(key_request()).text
    server = connect(valkey)
    kept: Any = [server.hgetall(key) for key in server.scan_iter("ts:access:*")]
    assert kept
    assert text.rpartition("_")[2] not in repr(kept)
    with pytest.raises(KeyInvalid):
        ledger.keys.check(f"ts_{kept[0]['id']}_{kept[0]['hash']}")


@pytest.mark.parametrize("spoil", [str.upper, lambda text: text[:-1], lambda text: text + "0", lambda _: ""])
def test_altered_key_is_invalid(ledger: Ledger, spoil: Any) -> None:
    text = ledger.keys.create(key_request()).text
    other = ledger.keys.create(key_request()).text
    for wrong in (spoil(text), text[:20] + other[20:], "ts_é_" + "0" * 64):
        with pytest.raises(KeyInvalid):
            ledger.keys.check(wrong)


def test_key_expires_by_the_clock_of_the_ledger(ledger: Ledger, valkey: str) -> None:
    issued = ledger.keys.create(key_request(expires_at=datetime.now(UTC) + timedelta(hours=1)))
    assert ledger.keys.is_valid(issued.key.id)
    connect(valkey).hset(f"ts:access:{issued.key.id}", "expires_at", 1)
    with pytest.raises(KeyExpired):
        ledger.keys.check(issued.text)
    assert not ledger.keys.is_valid(issued.key.id)
    with pytest.raises(InvalidParameter):
        ledger.keys.create(key_request(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))


def test_key_use_is_recorded_once_a_minute(ledger: Ledger, valkey: str) -> None:
    issued = ledger.keys.create(key_request())
    assert ledger.keys.check(issued.text).used_at is None
    first = ledger.keys.check(issued.text).used_at
    assert first is not None
    assert ledger.keys.check(issued.text).used_at == first
    connect(valkey).hset(f"ts:access:{issued.key.id}", "used_at", 1)
    ledger.keys.check(issued.text)
    assert ledger.keys.all()[0].used_at >= first  # type: ignore[operator]


def test_repeated_key_scripts_change_nothing(ledger: Ledger, valkey: str) -> None:
    scripts = Scripts(connect(valkey))
    first = scripts.run("tenants/key_create", "an-id", "hash", "ci", "acme", "read", "")
    assert scripts.run("tenants/key_create", "an-id", "hash", "ci", "acme", "read", "") == first
    ledger.keys.revoke("an-id")
    with pytest.raises(UnknownKey):
        ledger.keys.revoke("an-id")
    assert scripts.run("tenants/key_use", "an-id") == 0
    assert not connect(valkey).keys("ts:access*")


def test_keys_are_created_used_listed_and_revoked_over_http(guarded: Api) -> None:
    client, admin = guarded.client, bearer(guarded.ledger.keys.create(key_request(scope="admin")).text)
    made = client.post("/v1/keys", json={"name": "ci", "tenant": "acme", "scope": "read"}, headers=admin)
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    key = made.json()
    assert client.get("/v1/jobs", headers=bearer(key["key"])).json()["items"] == []
    listed = client.get("/v1/keys", headers=admin)
    assert [one["name"] for one in listed.json()["items"]] == ["ci", "ci"]
    assert key["key"] not in listed.text
    assert key["key"].rpartition("_")[2] not in listed.text
    assert client.delete(f"/v1/keys/{key['id']}", headers=admin).status_code == 204
    assert_problem(client.get("/v1/jobs", headers=bearer(key["key"])), 401, "key_invalid")
    assert_problem(client.delete(f"/v1/keys/{key['id']}", headers=admin), 404, "unknown_key")


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
def test_invalid_key_request_is_422(api: Api, changes: dict[str, Any], field: str) -> None:
    assert_problem(
        api.client.post("/v1/keys", json={"name": "ci", **changes}), 422, "invalid_parameter", field
    )


def test_revoked_key_is_invalid_in_other_processes_at_once(guarded: Api, settings: Settings) -> None:
    issued = guarded.ledger.keys.create(key_request())
    with run_service(settings.model_copy(update={"require_keys": True})) as other:
        assert other.client.get("/v1/jobs", headers=bearer(issued.text)).status_code == 200
        guarded.ledger.keys.revoke(issued.key.id)
        assert_problem(other.client.get("/v1/jobs", headers=bearer(issued.text)), 401, "key_invalid")


@pytest.mark.parametrize("path", ["/v1/events", "/v1/jobs/{job}/events"])
def test_event_streams_of_a_revoked_key_end_soon(guarded: Api, path: str) -> None:
    issued = guarded.ledger.keys.create(key_request())
    with guarded.worker.pause():
        job = guarded.submit(wait=None, headers=bearer(issued.text)).json()["id"]
        with guarded.client.stream("GET", path.format(job=job), headers=bearer(issued.text)) as response:
            assert response.status_code == 200
            lines = response.iter_lines()
            guarded.ledger.keys.revoke(issued.key.id)
            began = time.monotonic()
            assert not [line for line in lines if "completed" in line]
    assert time.monotonic() - began < 20


def test_sent_key_is_checked_even_where_keys_are_not_required(api: Api) -> None:
    issued = api.ledger.keys.create(key_request(tenant="acme"))
    job = api.submit(headers=bearer(issued.text)).json()["id"]
    assert api.client.get(f"/v1/jobs/{job}", headers=bearer(issued.text)).status_code == 200
    assert_problem(api.client.get(f"/v1/jobs/{job}"), 404, "unknown_job")
    assert_problem(api.client.get("/v1/jobs", headers=bearer("ts_wrong")), 401, "key_invalid")


def test_logs_contain_no_key(guarded: Api) -> None:
    issued = guarded.ledger.keys.create(key_request(tenant="acme"))
    with capture_logs() as lines:
        guarded.client.get("/v1/jobs", headers=bearer(issued.text))
        guarded.client.get("/v1/jobs", headers=bearer(issued.text + "0"))
        guarded.client.get("/healthz")
        wait_until(lambda: len([line for line in lines if line["event"] == "request"]) == 3)
    told = [(line["tenant"], line["key"]) for line in lines if line["event"] == "request"]
    assert told == [("acme", issued.key.id), (None, None), (None, None)]
    assert issued.text.rpartition("_")[2] not in repr(lines)


def test_key_check_is_503_while_the_ledger_is_unavailable(
    guarded: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise LedgerUnavailable("the ledger cannot be reached")

    monkeypatch.setattr(guarded.ledger.keys._scripts, "run", away)
    assert_problem(
        guarded.client.get("/v1/jobs", headers=bearer("ts_" + "0" * 16 + "_" + "0" * 64)),
        503,
        "ledger_unavailable",
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.org"])
def test_public_address_needs_required_keys_or_a_first_key(
    ledger: Ledger, settings: Settings, host: str
) -> None:
    open_to_all = settings.model_copy(update={"host": host})
    assert open_to_all.needs_keys
    with pytest.raises(StartError, match="touchstone keys create"):
        check_address(open_to_all, ledger.keys)
    check_address(open_to_all.model_copy(update={"require_keys": True}), ledger.keys)
    ledger.keys.create(key_request())
    check_address(open_to_all, ledger.keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_address_needs_no_keys(ledger: Ledger, settings: Settings, host: str) -> None:
    local = settings.model_copy(update={"host": host})
    assert not local.needs_keys
    check_address(local, ledger.keys)


def test_service_process_tells_how_to_create_a_key_when_it_does_not_start(
    valkey: str, tmp_path: Path
) -> None:
    done = run_command(
        "-m", "service", TOUCHSTONE_HOST="0.0.0.0", TOUCHSTONE_REDIS_URL=valkey, TOUCHSTONE_HOME=tmp_path
    )
    assert done.returncode == 1
    assert "touchstone keys create NAME --scope admin" in done.stderr


def run_command(*words: str, **environment: Any) -> subprocess.CompletedProcess[str]:
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


def test_keys_command_creates_lists_and_revokes_keys_without_a_running_service(tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = run_command("-m", "touchstone", "keys", "create", "first", "--scope", "admin", "--home", str(home))
    assert made.returncode == 0, made.stderr
    assert embedded_valkey.process_id(address.socket_url(home)) is None, "it left its Valkey running"
    valkey = embedded_valkey.start(home)
    try:
        chosen = Settings(home=home, host="0.0.0.0")
        ledger = Ledger(valkey.url, chosen)
        assert ledger.keys.check(made.stdout.strip()).scope == "admin"
        check_address(chosen, ledger.keys)
        listed = run_command("-m", "touchstone", "keys", "list", TOUCHSTONE_REDIS_URL=valkey.url)
        [key] = ledger.keys.all()
        assert key.id in listed.stdout
        assert made.stdout.strip() not in listed.stdout
        assert (
            run_command(
                "-m", "touchstone", "keys", "revoke", key.id, TOUCHSTONE_REDIS_URL=valkey.url
            ).returncode
            == 0
        )
        assert ledger.keys.all() == []
        refused = run_command(
            "-m", "touchstone", "keys", "create", "x", "--scope", "root", TOUCHSTONE_REDIS_URL=valkey.url
        )
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "scope" in refused.stderr
        ledger.close()
    finally:
        valkey.stop()


def test_access_doc_commands_run(guarded: Api) -> None:
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


def test_command_line_sends_the_api_key_of_the_settings(
    guarded: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("models", "--url", guarded.origin)
    refused = command_line.run_command(monkeypatch, *words)
    assert refused.code == 1
    assert "an API key is needed" in refused.err
    monkeypatch.setenv("TOUCHSTONE_API_KEY", guarded.ledger.keys.create(key_request(scope="read")).text)
    assert "fashion-mnist-cnn" in command_line.run_command(monkeypatch, *words).out


def test_answers_to_a_key_are_kept_out_of_shared_caches(guarded: Api) -> None:
    key = bearer(guarded.ledger.keys.create(key_request()).text)
    job = guarded.run_job(headers=key)["links"]
    expected = {
        job["self"]: "private, no-cache",
        job["artifacts"]["adversarial.png"]: "private, max-age=31536000, immutable",
        "/v1/jobs": "no-store",
        "/v1/operations": "no-store",
        "/v1/models": "private, no-cache",
        "/v1/jobs/none": "no-store",
    }
    answers = {path: guarded.client.get(path, headers=key).headers for path in expected}
    assert {path: headers["cache-control"] for path, headers in answers.items()} == expected
    assert all("Authorization" in headers["vary"] for headers in answers.values())
    assert "Accept" in answers[job["self"]]["vary"]
    with guarded.client.stream("GET", "/v1/events", headers=key) as stream:
        assert stream.headers["cache-control"] == "private, no-cache"
    assert "authorization" not in guarded.client.get("/healthz").headers.get("vary", "").lower()
