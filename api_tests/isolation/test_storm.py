"""One tenant's storm of slow images, streams and hanging receivers beside another tenant at work."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import service.app
from api_tests.isolation.test_open_requests import key_of, open_stream
from api_tests.sandbox.hostile_decoder import install_hostile_decoder
from api_tests.support.fake_service import Api, run_service
from api_tests.support.wait import wait_until
from api_tests.support.webhook_jobs import write_pings
from api_tests.support.webhook_receiver import Receiver
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.settings import Settings

UPLOADS = 5
STREAMS = 4


@pytest.fixture
def storm(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A service with keys, whose decoders some uploads hold up."""
    install_hostile_decoder(tmp_path, monkeypatch)
    monkeypatch.setattr(service.app, "check_concurrency", lambda _: 1)
    changes = {"require_keys": True, "outgoing_allow": "127.0.0.0/8", "tenant_streams": STREAMS}
    with run_service(settings.model_copy(update=changes)) as api:
        yield api


def test_healthy_tenant_uploads_waits_and_is_told_beside_a_storm(storm: Api, receiver: Receiver) -> None:
    hostile, healthy = key_of(storm, "hostile"), key_of(storm, "healthy")
    deliveries = TenantLedger.of(storm.ledger, "hostile").deliveries
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("", 0), backlog=100))
        write_pings(storm.ledger, "hostile", f"http://127.0.1.%d:{silent.getsockname()[1]}/", 60)
        streams = [open_stream(storm, stack, "/v1/events", hostile) for _ in range(STREAMS + 4)]
        assert [one.status_code for one in streams] == [200] * STREAMS + [429] * 4
        pool = stack.enter_context(ThreadPoolExecutor(UPLOADS))
        uploads = [
            pool.submit(storm.submit, image=b"spin", wait=None, headers=hostile) for _ in range(UPLOADS)
        ]
        wait_until(lambda: storm.server._backend.decoders.deaths > 0)
        answer = storm.submit(headers=healthy, webhook=receiver.url)
        ended = sum(upload.done() for upload in uploads)
        assert answer.status_code == 200
        assert ended < UPLOADS - 1, "the upload waited for others' uploads"
        receiver.wait()
        assert deliveries.find(status="pending", limit=200)[0], "the webhook waited for others' webhooks"
        assert storm.client.get("/healthz").status_code == 200
        assert {upload.result().json()["code"] for upload in uploads} == {"invalid_image"}
