"""Large parameters, results and manifests are blobs, which are counted; the ledger stays small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from api_tests.ledger.test_ledger import claim
from api_tests.ledger.test_search import ids
from api_tests.support.fake_service import MODEL_PROBE, sample_manifest
from touchstone.errors import ModelConflict, StorageFull, UnknownModel
from touchstone.ledger import codec, search
from touchstone.ledger.large_values import encode_value
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.quotas import Quota
from touchstone.ledger.records import LOCAL, Job, JobFailure, Submission, max_output_bytes
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models.manifest import Manifest
from touchstone.models.store import list_manifests
from touchstone.settings import Settings
from touchstone.storage import model_store
from touchstone.storage.blobs import Blobs, open_blobs
from touchstone.storage.garbage_collector import GarbageCollector
from touchstone.storage.model_store import RegisteredStore

NAMES = ["ü" * 100 + str(number) for number in range(1000)]
LARGE = {"names": NAMES}
SIZE = len(encode_value(LARGE).encode())
"""Some 200 kB."""


@pytest.fixture
def blobs(settings: Settings) -> Blobs:
    return open_blobs(settings)


@pytest.fixture
def ledger(settings: Settings, blobs: Blobs) -> Iterator[Ledger]:
    ledger = Ledger(str(settings.redis_url), settings, blobs)
    yield ledger
    ledger.close()


@pytest.fixture
def large(submission: Submission) -> Submission:
    return submission.model_copy(update={"parameters": LARGE})


def end(ledger: Ledger, job: Job, result: dict[str, Any]) -> None:
    kept = ledger.large_values.keep_result(result)
    assert ledger.finish(job.id, claim(ledger, job).claims, status="succeeded", result=kept)


def count_ledger_bytes(server: redis.Redis) -> int:
    return sum(server.memory_usage(key) or 0 for key in server.scan_iter())


def held(ledger: Ledger) -> int:
    return ledger.quotas.stored_bytes(LOCAL)


def large_manifest(number: int = 0) -> Manifest:
    changes = {"id": f"m{number}", "digest": f"sha256:{number:064}", "classes": tuple(NAMES)}
    return sample_manifest().model_copy(update=changes)


def test_large_parameters_and_results_are_read_as_they_were_written(
    ledger: Ledger, large: Submission
) -> None:
    job, new = ledger.accept(large, idempotency=("key", "digest"))
    assert (job.submission, new) == (large, True)
    assert ledger.read(job.id).submission == large
    assert ledger.accept(large, idempotency=("key", "digest"))[0].submission == large
    end(ledger, job, LARGE)
    [found] = TenantLedger.of(ledger, LOCAL).find().jobs
    assert found == ledger.read(job.id)
    assert (found.submission, found.result, found.large) == (large, LARGE, {})


def test_large_values_take_next_to_nothing_of_the_ledger(
    ledger: Ledger, large: Submission, server: redis.Redis
) -> None:
    before = count_ledger_bytes(server)
    for number in range(5):
        end(ledger, ledger.accept(large)[0], LARGE)
        TenantLedger.of(ledger, LOCAL).versions.register(large_manifest(number), MODEL_PROBE)
    assert count_ledger_bytes(server) - before < 5 * 20_000


def test_large_values_are_counted_once_and_released_with_the_last_job(
    ledger: Ledger, blobs: Blobs, large: Submission
) -> None:
    first, second = (ledger.accept(large)[0] for _ in range(2))
    assert held(ledger) == SIZE > 200_000
    end(ledger, first, LARGE)
    end(ledger, second, {**LARGE, "more": 1})
    assert held(ledger) == 2 * SIZE + len(',"more":1')
    ledger.delete(second.id)
    assert held(ledger) == SIZE
    ledger.delete(first.id)
    assert held(ledger) == 0
    collector = GarbageCollector(ledger, blobs, aside_seconds=-1)
    collector.sweep()
    collector.sweep()
    assert list(blobs.list_older_than(-1)) == []


def test_large_parameters_over_the_storage_quota_are_refused(ledger: Ledger, large: Submission) -> None:
    ledger.quotas.set(LOCAL, Quota(storage=SIZE - 1))
    with pytest.raises(StorageFull):
        ledger.check(large)
    ledger.quotas.set(LOCAL, Quota(storage=SIZE))
    ledger.accept(large)


def test_large_results_are_reserved_from_the_acceptance_on(large: Submission) -> None:
    def reserve(kind: str, **parameters: Any) -> int:
        return max_output_bytes(large.model_copy(update={"kind": kind, "parameters": parameters}))

    assert (reserve("prediction", top=5), reserve("registration", id="small")) == (0, 0)
    named = {"label": 999, "name": "ü" * 200, "confidence": 0.12345678901234567}
    assert reserve("prediction", top=1000) > 1000 * len(encode_value(named).encode())
    assert reserve("registration", **LARGE) > 2 * SIZE, "its result and its version"


def test_canceled_job_keeps_its_parameters_and_stores_no_result(ledger: Ledger, large: Submission) -> None:
    job = ledger.accept(large)[0]
    claimed = claim(ledger, job)
    assert (claimed.submission.parameters, set(claimed.large)) == ({}, {"parameters"})
    assert ledger.large_values.complete(claimed).submission == large
    ledger.cancel(job.id)
    result = ledger.large_values.keep_result({**LARGE, "more": 1})
    assert ledger.finish(job.id, claimed.claims, status="succeeded", result=result)
    assert (ledger.read(job.id).status, ledger.read(job.id).result) == ("canceled", None)
    assert held(ledger) == SIZE


def test_missing_blob_spoils_neither_a_job_nor_a_list(
    ledger: Ledger, blobs: Blobs, large: Submission, submission: Submission
) -> None:
    damaged, sound = ledger.accept(large)[0], ledger.accept(submission)[0]
    for digest in list(blobs.list_older_than(-1)):
        blobs.delete(digest)
    page = TenantLedger.of(ledger, LOCAL).find()
    assert ids(page) == [sound.id, damaged.id]
    assert page.jobs[1] == ledger.read(damaged.id)
    assert page.jobs[1].submission.parameters == {}


def test_ledger_without_blobs_refuses_large_values_and_reads_jobs_without_them(
    ledger: Ledger, large: Submission, settings: Settings
) -> None:
    job = ledger.accept(large)[0]
    blind = Ledger(str(settings.redis_url), settings)
    with pytest.raises(TypeError, match="without blobs"):
        blind.accept(large)
    assert blind.read(job.id).submission.parameters == {}
    blind.close()


def test_page_ends_early_by_the_bytes_of_its_jobs_and_their_large_values(
    ledger: Ledger, large: Submission, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [ledger.accept(kind)[0].id for kind in (submission, large, submission, submission, large)]
    end(ledger, ledger.read(jobs[0]), LARGE)
    monkeypatch.setattr(search, "PAGE_BYTES", SIZE)
    pages = [TenantLedger.of(ledger, LOCAL).find()]
    while pages[-1].cursor:
        pages.append(TenantLedger.of(ledger, LOCAL).find(cursor=pages[-1].cursor))
    assert [len(page.jobs) for page in pages] == [1, 3, 1]
    assert ids(*pages) == jobs[::-1]


def test_two_hundred_usual_jobs_fit_on_a_page(ledger: Ledger, submission: Submission) -> None:
    usual = submission.model_copy(update={"parameters": {"note": "x" * 2000}})
    for _ in range(200):
        ledger.accept(usual)
    page = TenantLedger.of(ledger, LOCAL).find(limit=200)
    assert (len(page.jobs), page.cursor) == (200, None)


def test_large_manifest_is_registered_read_and_released(ledger: Ledger, blobs: Blobs) -> None:
    versions, manifest = TenantLedger.of(ledger, LOCAL).versions, large_manifest()
    assert versions.register(manifest, MODEL_PROBE, size=100)
    assert versions.register(manifest, MODEL_PROBE, size=100)
    with pytest.raises(ModelConflict):
        versions.register(manifest.model_copy(update={"licence": "other"}), MODEL_PROBE, size=100)
    assert held(ledger) == 100 + len(manifest.model_dump_json().encode())
    store = RegisteredStore(ledger, blobs)
    assert store.manifest("m0") == manifest
    assert store.manifests()["m0"] == manifest
    versions.delete("m0")
    assert held(ledger) == 0


def test_list_of_models_goes_on_without_a_lost_manifest(ledger: Ledger, blobs: Blobs) -> None:
    versions = TenantLedger.of(ledger, LOCAL).versions
    versions.register(large_manifest(), MODEL_PROBE)
    [digest] = blobs.list_older_than(-1)
    versions.register(sample_manifest().model_copy(update={"id": "small"}), MODEL_PROBE)
    blobs.delete(digest)
    store = RegisteredStore(ledger, blobs)
    assert "small" in [manifest.id for manifest in list_manifests(store)]
    assert "m0" not in [manifest.id for manifest in list_manifests(store)]
    with pytest.raises(UnknownModel):
        store.manifest("m0")


def test_cache_keeps_the_versions_that_were_used_last(
    ledger: Ledger, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = TenantLedger.of(ledger, LOCAL).versions
    for number in range(4):
        versions.register(large_manifest(number), MODEL_PROBE)
    monkeypatch.setattr(model_store, "CACHE_LETTERS", 3 * len(large_manifest().model_dump_json()) + 10_000)
    store = RegisteredStore(ledger, blobs)
    first = store.manifest("m0")
    others = [store.manifest(name) for name in ("m1", "m2")]
    assert store.manifest("m0") is first
    store.manifest("m3")
    assert store.manifest("m0") is first, "it was used again, and stayed"
    assert store.manifest("m1") is not others[0], "it had to go"


def test_long_error_is_cut() -> None:
    error = JobFailure(code="invalid_model", detail="x" * 100_000, extra={"candidates": NAMES})
    [_, text] = codec.encode_outcome(None, error, None, {})
    found = JobFailure.model_validate_json(text)
    assert (found.code, set(found.detail), found.extra) == ("invalid_model", {"x"}, {})
    assert len(text) < 2000


def test_webhook_is_sent_the_whole_job(ledger: Ledger, large: Submission) -> None:
    job = ledger.accept(large.model_copy(update={"webhook": "https://receiver.example/"}))[0]
    end(ledger, job, LARGE)
    [claimed] = ledger.outbox.claim({})
    assert claimed.job == ledger.read(job.id)
    assert claimed.job.result == LARGE
