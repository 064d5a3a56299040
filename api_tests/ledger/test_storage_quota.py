"""The storage quota of a tenant: bytes of jobs and models are counted, and more are refused."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import redis

from api_tests.ledger.test_ledger import claim
from api_tests.service.test_bad_http import exchange
from api_tests.storage.test_garbage_collector import age_ended_jobs, with_file, with_image
from api_tests.storage.test_storage_full import files, large_png, register
from api_tests.support.fake_service import MODEL_PROBE, Api, assert_problem
from api_tests.support.wait import wait_until
from touchstone.errors import StorageFull
from touchstone.images import encode
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.quotas import Quota, QuotaUsage
from touchstone.ledger.records import LOCAL, Artifact, ImageRef, Job, Submission, max_output_bytes
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.methods.inference import to_npy
from touchstone.models.zoo import manifests
from touchstone.storage.blobs import FolderBlobs, digest_of
from touchstone.storage.garbage_collector import GarbageCollector

NEEDS = QuotaUsage(input_bytes=100, output_bytes=1000)


def count_held_bytes(ledger: Ledger, tenant: str = "them") -> int:
    return TenantLedger.of(ledger, tenant).storage()[0]


def accept(ledger: Ledger, submission: Submission, tenant: str = "them") -> Job:
    return TenantLedger.of(ledger, tenant).accept(submission, usage=NEEDS)[0]


def end(ledger: Ledger, job: Job, *sizes: int) -> None:
    artifacts = {
        str(size): Artifact(digest=digest_of(b"%d" % size), media_type="image/png", size=size)
        for size in sizes
    }
    assert ledger.finish(job.id, claim(ledger, job).claims, status="succeeded", artifacts=artifacts)


def test_job_reserves_its_largest_output_until_it_ends_then_counts_actual_bytes(
    ledger: Ledger, submission: Submission, server: redis.Redis, tmp_path: Path
) -> None:
    first, second = accept(ledger, submission), accept(ledger, submission)
    assert count_held_bytes(ledger) == 100 + 2 * 1000, "one image"
    end(ledger, first, 30, 7)
    assert count_held_bytes(ledger) == 100 + 37 + 1000
    ledger.cancel(second.id)
    assert count_held_bytes(ledger) == 137
    ledger.delete(second.id)
    assert count_held_bytes(ledger) == 137
    age_ended_jobs(server)
    GarbageCollector(ledger, FolderBlobs(tmp_path)).expire()
    assert count_held_bytes(ledger) == 0
    ledger.delete(accept(ledger, submission).id)
    assert not server.keys("ts:stored")
    assert not server.keys("ts:held:*")


def test_shared_blob_counts_for_each_tenant_that_holds_it(ledger: Ledger, submission: Submission) -> None:
    theirs, ours = accept(ledger, submission), accept(ledger, submission, "us")
    ledger.cancel(theirs.id)
    ledger.delete(theirs.id)
    assert (count_held_bytes(ledger), count_held_bytes(ledger, "us")) == (0, 1100)
    assert ledger.retention.filter_referenced([ours.submission.source]) == {ours.submission.source}


def test_model_file_counts_until_the_model_is_deleted(ledger: Ledger, submission: Submission) -> None:
    registration = with_file(submission, b"a file")
    manifest = next(iter(manifests().values())).model_copy(
        update={"id": "mine", "digest": registration.source}
    )
    job = TenantLedger.of(ledger, "them").accept(registration, usage=QuotaUsage(input_bytes=500))[0]
    TenantLedger.of(ledger, "them").versions.register(manifest, MODEL_PROBE, size=500)
    assert count_held_bytes(ledger) == 500
    end(ledger, job)
    ledger.delete(job.id)
    TenantLedger.of(ledger, "them").versions.register(manifest, MODEL_PROBE, size=500)
    assert count_held_bytes(ledger) == 500
    TenantLedger.of(ledger, "them").versions.delete("mine")
    assert count_held_bytes(ledger) == 0


def test_bytes_over_the_storage_quota_are_refused_and_no_others(
    ledger: Ledger, submission: Submission
) -> None:
    ledger.quotas.set("them", Quota(storage=2199))
    first, _ = TenantLedger.of(ledger, "them").accept(submission, idempotency=("key", "digest"), usage=NEEDS)
    with pytest.raises(StorageFull) as refused:
        accept(ledger, with_image(submission, b"another"))
    assert refused.value.extra == {"retry_after": 60, "stored": 1100, "limit": 2199}
    again, new = TenantLedger.of(ledger, "them").accept(
        submission, idempotency=("key", "digest"), usage=NEEDS
    )
    assert (again.id, new) == (first.id, False)
    assert accept(ledger, with_image(submission, b"another"), "us")
    second = accept(ledger, submission)  # brings nothing that is not held already
    with pytest.raises(StorageFull):
        accept(ledger, submission)
    ledger.cancel(second.id)
    assert accept(ledger, submission)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sides", [(8, 8), (8, 4096), (300, 451)])
def test_reserved_output_bytes_are_at_least_what_a_job_stores(
    submission: Submission, sides: tuple[int, int], channels: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*sides, channels), np.uint8)
    left = 2 * len(encode(noise)) + len(to_npy([noise.astype(np.float32)]))
    image = ImageRef(digest="sha256:" + "1" * 64, width=sides[1], height=sides[0], channels=channels)
    attack = submission.model_copy(update={"image": image})
    assert left <= max_output_bytes(attack) <= 1.1 * left + 5000
    assert max_output_bytes(attack.model_copy(update={"kind": "certificate"})) == 0


def test_request_over_the_storage_quota_answers_507_and_stores_nothing(api: Api) -> None:
    job = api.run_job()
    shown = api.client.get("/v1/operations").json()["storage"]
    sizes = [len(api.client.get(path).content) for path in job["links"]["artifacts"].values()]
    assert (shown["held"], shown["limit"]) == (sum(sizes), None)
    api.ledger.quotas.set(LOCAL, Quota(storage=sum(sizes)))
    before = files(api)
    for response in (api.submit(image=large_png()), api.submit("/v1/predictions", image=large_png())):
        refused = assert_problem(response, 507, "storage_full")
        assert (refused["stored"], refused["limit"]) == (shown["held"], shown["held"])
        assert response.headers["Retry-After"] == "60"
    assert files(api) == before
    assert api.client.delete(job["links"]["self"]).status_code == 204
    assert api.submit().status_code == 200
    api.ledger.quotas.set(LOCAL, None)


def test_refused_jobs_store_no_files(api: Api) -> None:
    before = files(api)
    api.ledger.quotas.set(LOCAL, Quota(waiting=0))
    assert_problem(api.submit(image=large_png()), 429, "tenant_queue_full")
    api.ledger.quotas.set(LOCAL, None)
    assert files(api) == before


UPLOAD_HEAD = (
    b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
)


def test_model_over_the_storage_quota_is_refused_before_its_body_is_read(api: Api) -> None:
    api.ledger.quotas.set(LOCAL, Quota(storage=999_999))
    assert exchange(api, UPLOAD_HEAD, seconds=1).startswith(b"HTTP/1.1 507 ")
    api.ledger.quotas.set(LOCAL, Quota(storage=0))
    assert_problem(register(api, b"\x08\x07" + bytes(1000)), 507, "storage_full")
    api.ledger.quotas.set(LOCAL, None)


def test_concurrent_model_uploads_count_together_against_the_quota(api: Api) -> None:
    pending_uploads = api.server.config.app.state.backend.pending_uploads  # type: ignore[union-attr]
    before = api.ledger.quotas.stored_bytes(LOCAL)
    api.ledger.quotas.set(LOCAL, Quota(storage=before + 1_999_999))
    with socket.create_connection(("127.0.0.1", api.port)) as first:
        first.sendall(UPLOAD_HEAD)
        wait_until(lambda: pending_uploads.all == 1_000_000)
        assert exchange(api, UPLOAD_HEAD, seconds=1).startswith(b"HTTP/1.1 507 ")
        assert pending_uploads.all == 1_000_000
    wait_until(lambda: pending_uploads.all == 0)
    assert not exchange(api, UPLOAD_HEAD, seconds=0.3), "it is waited for"
    wait_until(lambda: pending_uploads.all == 0)
    api.ledger.quotas.set(LOCAL, None)
