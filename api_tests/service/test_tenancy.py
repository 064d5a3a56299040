"""What is one tenant's is not there for another: in the ledger, among the models, and for the workers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from api_tests.support.fake_service import MODEL_PROBE
from api_tests.support.own_models import build_manifest, linear_onnx
from service.state.broadcaster import Broadcaster, ServerEvent, Subscriber
from touchstone.errors import InvalidCursor, ModelInUse, UnknownJob, UnknownModel
from touchstone.evaluation.certificate_result import pool_key
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import ModelRef, Progress, Submission
from touchstone.ledger.replies import QueueState
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models.manifest import Manifest
from touchstone.models.store import ZOO, find_model, find_pinned
from touchstone.registration.examination import complete_manifest
from touchstone.registration.request import Registration
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.storage.model_store import RegisteredStore


@pytest.fixture
def acme(ledger: Ledger) -> TenantLedger:
    return TenantLedger.of(ledger, "acme")


@pytest.fixture
def other(ledger: Ledger) -> TenantLedger:
    return TenantLedger.of(ledger, "other")


@pytest.fixture
def registry(ledger: Ledger, settings: Settings) -> RegisteredStore:
    return RegisteredStore(ledger, open_blobs(settings))


def test_job_belongs_to_the_accepting_tenant_whatever_its_submission_says(
    acme: TenantLedger, other: TenantLedger, submission: Submission
) -> None:
    job, _ = acme.accept(submission.model_copy(update={"tenant": "other"}))
    assert acme.read(job.id).submission.tenant == "acme"
    with pytest.raises(UnknownJob):
        other.read(job.id)


def test_other_tenants_job_is_answered_like_a_nonexistent_one(
    acme: TenantLedger, other: TenantLedger, submission: Submission
) -> None:
    job, _ = acme.accept(submission)
    nobody = "0" * 32
    for act in (other.read, other.cancel, other.delete, other.events, other.count_ahead):
        said = []
        for name in (job.id, nobody):
            with pytest.raises(UnknownJob) as caught:
                act(name)
            said.append(caught.value.detail.replace(name, "…"))
        assert said[0] == said[1]
    assert other.find().jobs == ()
    assert acme.read(job.id) == job


def test_bulk_cancel_cancels_only_jobs_of_the_tenant(
    acme: TenantLedger, other: TenantLedger, submission: Submission
) -> None:
    first, mine = acme.accept(submission)[0].id, other.accept(submission)[0].id
    answers = other.cancel_all([first, mine, "nobody", mine])
    assert [answer.status for answer in answers] == [None, "canceled", None, "canceled"]
    assert [type(answer.refusal) for answer in answers[::2]] == [UnknownJob, UnknownJob]
    assert acme.read(first).status == "queued"


def test_job_lists_and_cursors_are_separate_for_each_tenant(
    acme: TenantLedger, other: TenantLedger, submission: Submission
) -> None:
    mine = [tenant.accept(submission)[0].id for _ in range(3) for tenant in (acme, other)][::2]
    first = acme.find(limit=2)
    assert [job.id for job in (*first.jobs, *acme.find(limit=2, cursor=first.cursor).jobs)] == mine[::-1]
    with pytest.raises(InvalidCursor):
        other.find(limit=2, cursor=first.cursor)
    assert [job.id for job in acme.find(status="queued", method="pgd", model="digits").jobs] == mine[::-1]


def test_job_counts_and_queue_are_separate_for_each_tenant(
    ledger: Ledger, acme: TenantLedger, other: TenantLedger, submission: Submission
) -> None:
    jobs = [acme.accept(submission)[0].id for _ in range(3)]
    ledger.claim(jobs[0], "w1")
    acme.cancel(jobs[1])
    assert {status: n for status, n in acme.count_by_status().items() if n} == {
        "queued": 1,
        "running": 1,
        "canceled": 1,
    }
    assert acme.queue().depth == 1
    assert not any(other.count_by_status().values())
    assert other.queue() == QueueState(0, 0.0)
    assert ledger.count_by_status() == acme.count_by_status()
    acme.delete(jobs[1])
    acme.delete(jobs[2])
    assert {status: n for status, n in acme.count_by_status().items() if n} == {"running": 1}
    assert [job.id for job in acme.find().jobs] == jobs[:1]


def test_idempotency_keys_are_separate_for_each_tenant(
    acme: TenantLedger, other: TenantLedger, submission: Submission
) -> None:
    first, again = (acme.accept(submission, idempotency=("key", "a"))[0] for _ in range(2))
    theirs, created = other.accept(submission, idempotency=("key", "b"))
    assert first.id == again.id != theirs.id
    assert created


def make_manifest(seed: int = 0) -> Manifest:
    data = linear_onnx(seed=seed)
    return complete_manifest(build_manifest(data), data)


def test_models_are_separate_for_each_tenant(
    acme: TenantLedger, other: TenantLedger, registry: RegisteredStore
) -> None:
    mine, theirs = make_manifest(0), make_manifest(1)
    acme.versions.register(mine, MODEL_PROBE)
    for shelf in (registry, registry.of("other")):
        assert "lin" not in shelf.manifests()
        for name in ("lin", f"lin@{mine.digest[7:19]}"):
            with pytest.raises(UnknownModel) as caught:
                find_model(shelf, name)
            assert "named 'lin'" in caught.value.detail
    other.versions.register(theirs, MODEL_PROBE)
    assert registry.of("acme").manifest("lin") == mine
    assert registry.of("other").manifest("lin") == theirs
    with pytest.raises(UnknownModel):
        other.versions.delete("lin", mine.digest)
    other.versions.delete("lin")
    assert registry.of("acme").digests("lin") == (mine.digest,)


def test_tenants_may_register_one_file_with_different_manifests(
    acme: TenantLedger, other: TenantLedger, registry: RegisteredStore
) -> None:
    mine = make_manifest()
    theirs = mine.model_copy(update={"classes": ("left", "right", "up")[: len(mine.classes)]})
    acme.versions.register(mine, MODEL_PROBE)
    other.versions.register(theirs, MODEL_PROBE)
    assert registry.of("acme").manifest("lin", mine.digest) == mine
    assert registry.of("other").manifest("lin", mine.digest) == theirs


def test_model_is_kept_only_by_jobs_of_its_tenant(
    acme: TenantLedger, other: TenantLedger, submission: Submission
) -> None:
    mine = make_manifest()
    acme.versions.register(mine, MODEL_PROBE)
    other.versions.register(mine, MODEL_PROBE)
    acme.accept(submission.model_copy(update={"model": ModelRef(id="lin", digest=mine.digest)}))
    with pytest.raises(ModelInUse):
        acme.versions.delete("lin")
    other.versions.delete("lin")


def test_worker_finds_the_model_of_the_tenant_of_the_job(
    acme: TenantLedger, registry: RegisteredStore, submission: Submission
) -> None:
    mine = make_manifest()
    acme.versions.register(mine, MODEL_PROBE)
    job, _ = acme.accept(submission.model_copy(update={"model": ModelRef(id="lin", digest=mine.digest)}))
    assert find_pinned(registry.of(job.submission.tenant), "lin", mine.digest) == mine


def test_certificate_counts_are_not_pooled_across_tenants(submission: Submission) -> None:
    card = ZOO.manifest("fashion-mnist-cnn")
    asked = {
        "kind": "certificate",
        "method": "smoothing",
        "parameters": {"rule": "e_process"},
        "model": ModelRef(id=card.id, digest=card.digest),
    }
    tenants = ("acme", "acme", "other")
    pools = [pool_key(submission.model_copy(update={**asked, "tenant": tenant})) for tenant in tenants]
    assert pools[0] == pools[1] != pools[2]


def test_equal_remote_models_of_two_tenants_have_separate_query_budgets() -> None:
    said = {
        "id": "far",
        "classes": ["cat", "dog"],
        "input": {"height": 8, "width": 8},
        "remote": {
            "url": "https://models.example.org",
            "protocol": "oip",
            "oip": {"model": "x"},
            "answers": "logits",
        },
    }
    cards = [Registration.parse(said).build_remote_manifest(tenant)[0] for tenant in ("acme", "other")]
    assert cards[0].digest != cards[1].digest


def test_job_events_are_broadcast_only_to_their_tenant(ledger: Ledger, submission: Submission) -> None:
    async def told() -> list[list[str]]:
        news = Broadcaster(ledger)
        news.start(asyncio.get_running_loop())
        with news.subscribe("acme") as acme, news.subscribe("other") as other:
            with ledger.watch() as changes:
                jobs = [TenantLedger.of(ledger, name).accept(submission)[0] for name in ("acme", "other")]
                ledger.claim(jobs[0].id, "w1")
                ledger.report(jobs[0].id, 1, Progress(done=1, total=2))
                TenantLedger.of(ledger, "other").delete(jobs[1].id)
                heard = itertools.islice(changes, 5)
                for change in heard:
                    if news.note(change):
                        with suppress(UnknownJob):
                            news.publish(ledger.read(change.id))
            news.flush_progress()
            await asyncio.sleep(0.01)
            return [[item.event async for item in drain_events(reader)] for reader in (acme, other)]

    assert asyncio.run(told()) == [["job", "progress"], ["deleted"]]


async def drain_events(reader: Subscriber) -> AsyncIterator[ServerEvent]:
    """What a reader is to be told at the moment."""
    with suppress(TimeoutError):
        while item := await asyncio.wait_for(reader.next(), 0.05):
            yield item
