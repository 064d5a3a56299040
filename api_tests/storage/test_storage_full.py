"""A full disk or full memory: it is reported, nothing is left half-written, and space can be freed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from api_tests.service.test_bad_http import exchange
from api_tests.support.fake_service import Api, assert_problem, run_service, sample_manifest
from api_tests.support.full_disk import full_disk, large_png
from api_tests.support.own_models import REGISTRATION_FIELDS, linear_onnx
from touchstone.errors import LedgerUnavailable, StorageFull
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.storage.blobs import FolderBlobs
from touchstone.storage.garbage_collector import GarbageCollector

MORE_THAN_ANY_DISK = 2**62


@pytest.fixture(scope="module")
def nearly_full_api(api: Api) -> Iterator[Api]:
    """The same service with a reserve that no disk has."""
    with run_service(api.settings.model_copy(update={"disk_reserve": MORE_THAN_ANY_DISK})) as nearly_full_api:
        yield nearly_full_api


def files(api: Api) -> set[Path]:
    return {path for path in (api.settings.home / "blobs").rglob("*") if path.is_file()}


def register(api: Api, data: bytes, wait: int = 0) -> httpx2.Response:
    return api.client.post(
        "/v1/models",
        files={"file": ("a.onnx", data)},
        data={"manifest": json.dumps({**REGISTRATION_FIELDS, "id": "big"})},
        headers={"Prefer": f"wait={wait}"},
    )


def infer(api: Api, **options: Any) -> httpx2.Response:
    spec = sample_manifest().input
    shape = [1, spec.channels, spec.height, spec.width]
    data = [0.0] * (shape[1] * shape[2] * shape[3])
    tensor = {"name": "image", "datatype": "FP32", "shape": shape, "data": data}
    return api.client.post(f"/v2/models/{sample_manifest().id}/infer", json={"inputs": [tensor]}, **options)


def test_submissions_are_507_while_the_disk_is_nearly_full(api: Api, nearly_full_api: Api) -> None:
    job = api.run_job()
    before = files(api), api.ledger.count_by_status()
    for response in (
        nearly_full_api.submit(),
        nearly_full_api.submit("/v1/predictions"),
        nearly_full_api.client.post(f"{job['links']['self']}/rerun"),
        register(nearly_full_api, linear_onnx()),
        infer(nearly_full_api),
    ):
        assert_problem(response, 507, "storage_full")
        assert response.headers["retry-after"] == "60"
    assert (files(api), api.ledger.count_by_status()) == before


def test_registration_is_507_before_its_body_is_read_when_disk_is_full(nearly_full_api: Api) -> None:
    head = (
        b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    assert exchange(nearly_full_api, head, seconds=1).startswith(b"HTTP/1.1 507 ")


def test_jobs_can_be_read_and_deleted_while_the_disk_is_nearly_full(api: Api, nearly_full_api: Api) -> None:
    path = api.run_job()["links"]["self"]
    assert nearly_full_api.client.get(path).json()["status"] == "succeeded"
    assert nearly_full_api.client.get(f"{path}/artifacts/adversarial.png").status_code == 200
    assert nearly_full_api.client.delete(path).status_code == 204


def test_operations_and_metrics_show_free_storage(nearly_full_api: Api) -> None:
    shown = nearly_full_api.client.get("/v1/operations").json()["storage"]
    assert 0 < shown["free"] < shown["reserve"] == MORE_THAN_ANY_DISK
    [line] = re.findall(
        r"(?m)^touchstone_storage_free_bytes (\S+)", nearly_full_api.client.get("/metrics").text
    )
    assert abs(float(line) - shown["free"]) < 2**30


def test_no_blobs_remain_after_all_jobs_and_models_are_deleted(api: Api) -> None:
    assert infer(api).status_code == 200
    api.run_job()
    api.run_job(path="/v1/predictions")
    assert register(api, linear_onnx(), wait=10).status_code == 200
    assert api.client.delete("/v1/models/big").status_code == 204
    for job in api.client.get("/v1/jobs", params={"limit": 200}).json()["items"]:
        assert api.client.delete(job["links"]["self"]).status_code == 204
    GarbageCollector(api.ledger, FolderBlobs(api.settings.home / "blobs"), aside_seconds=-1).sweep()
    assert {path.name for path in files(api)} <= {"owner"}


def test_image_that_does_not_fit_is_507_and_leaves_no_file(api: Api) -> None:
    before = files(api)
    with api.worker.pause(), full_disk():
        assert_problem(api.submit(image=large_png()), 507, "storage_full")
        assert files(api) == before
        assert api.submit(wait=None).status_code == 202, "a small one fits"
    assert api.submit(image=large_png()).status_code == 200


def test_model_that_does_not_fit_is_507_and_leaves_no_file(api: Api) -> None:
    before = files(api)
    with full_disk():
        assert_problem(register(api, linear_onnx() + bytes(3 * 2**20)), 507, "storage_full")
        assert files(api) == before


def test_failed_put_on_full_disk_leaves_no_file(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    with full_disk(), pytest.raises(StorageFull):
        blobs.put_many([b"small", large_png()])
    assert [path.name for path in tmp_path.rglob(".new-*")] == []
    blobs.put(large_png())


@contextmanager
def out_of_memory(server: redis.Redis) -> Iterator[None]:
    server.config_set("maxmemory", 1)
    try:
        yield
    finally:
        server.config_set("maxmemory", 0)


def test_ledger_without_memory_refuses_jobs_but_expires_and_deletes_them(
    ledger: Ledger, submission: Submission, server: redis.Redis, tmp_path: Path
) -> None:
    first, second, third = (ledger.accept(submission)[0].id for _ in range(3))
    for job in (first, second):
        ledger.cancel(job)
    server.zadd("ts:ended", {first: 1})
    with out_of_memory(server):
        with pytest.raises(LedgerUnavailable):
            ledger.accept(submission)
        GarbageCollector(ledger, FolderBlobs(tmp_path)).expire()
        for job in (second, third):
            ledger.delete(job)
    assert TenantLedger.of(ledger, LOCAL).find().jobs == ()
    ledger.delete(ledger.accept(submission)[0].id)  # its image was never stored


def test_ledger_without_memory_is_503_for_submissions(api: Api) -> None:
    with connect(str(api.settings.redis_url)) as server, out_of_memory(server):
        assert_problem(api.submit(), 503, "ledger_unavailable")
        assert api.client.get("/v1/jobs").status_code == 200
