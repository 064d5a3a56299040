"""How many bytes one tenant's jobs and models may hold: counted as they come and go, refused beyond."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import redis

from api_tests.ledger.test_ledger import claim
from api_tests.service.test_bad_http import exchange
from api_tests.storage.test_garbage_collector import long_ago, on, on_file
from api_tests.storage.test_storage_full import files, large_png, register
from api_tests.support.fake_service import EXAMINED, Api, problem
from api_tests.support.wait import wait_until
from touchstone.errors import StorageFull
from touchstone.images import encode
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.quotas import Allowance, Needs
from touchstone.ledger.records import LOCAL, Artifact, ImageRef, Job, Submission, leaves_of
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.methods.inference import to_npy
from touchstone.models.zoo import manifests
from touchstone.storage.blobs import FolderBlobs, digest_of
from touchstone.storage.garbage_collector import Sweeper

NEEDS = Needs(brings=100, leaves=1000)


def held(ledger: Ledger, tenant: str = "them") -> int:
    return Holdings.of(ledger, tenant).storage()[0]


def accept(ledger: Ledger, submission: Submission, tenant: str = "them") -> Job:
    return Holdings.of(ledger, tenant).accept(submission, needs=NEEDS)[0]


def end(ledger: Ledger, job: Job, *sizes: int) -> None:
    artifacts = {
        str(size): Artifact(digest=digest_of(b"%d" % size), media_type="image/png", size=size)
        for size in sizes
    }
    assert ledger.finish(job.id, claim(ledger, job).claims, status="succeeded", artifacts=artifacts)


def test_a_job_holds_what_it_works_on_and_what_it_may_leave_and_then_what_it_left(
    ledger: Ledger, submission: Submission, server: redis.Redis, tmp_path: Path
) -> None:
    first, second = accept(ledger, submission), accept(ledger, submission)
    assert held(ledger) == 100 + 2 * 1000, "one image"
    end(ledger, first, 30, 7)
    assert held(ledger) == 100 + 37 + 1000
    ledger.cancel(second.id)
    assert held(ledger) == 137
    ledger.delete(second.id)
    assert held(ledger) == 137
    long_ago(server)
    Sweeper(ledger, FolderBlobs(tmp_path)).expire()
    assert held(ledger) == 0
    ledger.delete(accept(ledger, submission).id)
    assert not server.keys("ts:stored")
    assert not server.keys("ts:held:*")


def test_whoever_shares_a_blob_pays_for_it(ledger: Ledger, submission: Submission) -> None:
    theirs, ours = accept(ledger, submission), accept(ledger, submission, "us")
    ledger.cancel(theirs.id)
    ledger.delete(theirs.id)
    assert (held(ledger), held(ledger, "us")) == (0, 1100)
    assert ledger.keeping.held([ours.submission.source]) == {ours.submission.source}


def test_a_model_holds_its_file_until_it_is_deleted(ledger: Ledger, submission: Submission) -> None:
    asked = on_file(submission, b"a file")
    card = next(iter(manifests().values())).model_copy(update={"id": "mine", "digest": asked.source})
    job = Holdings.of(ledger, "them").accept(asked, needs=Needs(brings=500))[0]
    Holdings.of(ledger, "them").versions.register(card, EXAMINED, size=500)
    assert held(ledger) == 500
    end(ledger, job)
    ledger.delete(job.id)
    Holdings.of(ledger, "them").versions.register(card, EXAMINED, size=500)
    assert held(ledger) == 500
    Holdings.of(ledger, "them").versions.forget("mine")
    assert held(ledger) == 0


def test_more_bytes_than_a_tenant_may_hold_are_refused_and_no_others(
    ledger: Ledger, submission: Submission
) -> None:
    ledger.allowances.set("them", Allowance(storage=2199))
    first, _ = Holdings.of(ledger, "them").accept(submission, idempotency=("key", "digest"), needs=NEEDS)
    with pytest.raises(StorageFull) as refused:
        accept(ledger, on(submission, b"another"))
    assert refused.value.extra == {"retry_after": 60, "stored": 1100, "limit": 2199}
    again, new = Holdings.of(ledger, "them").accept(submission, idempotency=("key", "digest"), needs=NEEDS)
    assert (again.id, new) == (first.id, False)
    assert accept(ledger, on(submission, b"another"), "us")
    second = accept(ledger, submission)  # brings nothing that is not held already
    with pytest.raises(StorageFull):
        accept(ledger, submission)
    ledger.cancel(second.id)
    assert accept(ledger, submission)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sides", [(8, 8), (8, 4096), (300, 451)])
def test_what_a_job_may_leave_is_no_less_than_what_it_leaves(
    submission: Submission, sides: tuple[int, int], channels: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*sides, channels), np.uint8)
    left = 2 * len(encode(noise)) + len(to_npy([noise.astype(np.float32)]))
    image = ImageRef(digest="sha256:" + "1" * 64, width=sides[1], height=sides[0], channels=channels)
    asked = submission.model_copy(update={"image": image})
    assert left <= leaves_of(asked) <= 1.1 * left + 5000
    assert leaves_of(asked.model_copy(update={"kind": "certificate"})) == 0


def test_over_the_quota_nothing_is_stored_and_the_answer_tells_how_much_there_is(api: Api) -> None:
    job = api.job()
    shown = api.client.get("/v1/operations").json()["storage"]
    sizes = [len(api.client.get(path).content) for path in job["links"]["artifacts"].values()]
    assert (shown["held"], shown["limit"]) == (sum(sizes), None)
    api.ledger.allowances.set(LOCAL, Allowance(storage=sum(sizes)))
    before = files(api)
    for response in (api.submit(image=large_png()), api.submit("/v1/predictions", image=large_png())):
        refused = problem(response, 507, "storage_full")
        assert (refused["stored"], refused["limit"]) == (shown["held"], shown["held"])
        assert response.headers["Retry-After"] == "60"
    assert files(api) == before
    assert api.client.delete(job["links"]["self"]).status_code == 204
    assert api.submit().status_code == 200
    api.ledger.allowances.set(LOCAL, None)


def test_a_tenant_whose_jobs_are_refused_fills_no_disk(api: Api) -> None:
    before = files(api)
    api.ledger.allowances.set(LOCAL, Allowance(waiting=0))
    problem(api.submit(image=large_png()), 429, "tenant_queue_full")
    api.ledger.allowances.set(LOCAL, None)
    assert files(api) == before


UPLOAD = (
    b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
)


def test_a_model_over_the_quota_is_refused_before_it_comes(api: Api) -> None:
    api.ledger.allowances.set(LOCAL, Allowance(storage=999_999))
    assert exchange(api, UPLOAD, seconds=1).startswith(b"HTTP/1.1 507 ")
    api.ledger.allowances.set(LOCAL, Allowance(storage=0))
    problem(register(api, b"\x08\x07" + bytes(1000)), 507, "storage_full")
    api.ledger.allowances.set(LOCAL, None)


def test_models_that_come_at_the_same_time_are_counted_together(api: Api) -> None:
    arrivals = api.server.config.app.state.backend.arrivals  # type: ignore[union-attr]
    before = api.ledger.allowances.stored(LOCAL)
    api.ledger.allowances.set(LOCAL, Allowance(storage=before + 1_999_999))
    with socket.create_connection(("127.0.0.1", api.port)) as first:
        first.sendall(UPLOAD)
        wait_until(lambda: arrivals.all == 1_000_000)
        assert exchange(api, UPLOAD, seconds=1).startswith(b"HTTP/1.1 507 ")
        assert arrivals.all == 1_000_000
    wait_until(lambda: arrivals.all == 0)
    assert not exchange(api, UPLOAD, seconds=0.3), "it is waited for"
    wait_until(lambda: arrivals.all == 0)
    api.ledger.allowances.set(LOCAL, None)
