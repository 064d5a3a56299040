"""What is one tenant's is not there for another: in the ledger, among the models, and for the workers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from api_tests.support.fake_service import EXAMINED
from api_tests.support.own_models import card_of, linear_onnx
from service.state.broadcaster import Item, News, Reader
from touchstone.errors import InvalidCursor, ModelInUse, UnknownJob, UnknownModel
from touchstone.evaluation.certificate_result import pool_of
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import ModelRef, Progress, Submission
from touchstone.ledger.replies import Queue
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.models.manifest import Manifest
from touchstone.models.store import ZOO, bound, find
from touchstone.registration.examination import completed
from touchstone.registration.request import Registration
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.storage.model_store import Registry


@pytest.fixture
def acme(ledger: Ledger) -> Holdings:
    return Holdings.of(ledger, "acme")


@pytest.fixture
def other(ledger: Ledger) -> Holdings:
    return Holdings.of(ledger, "other")


@pytest.fixture
def registry(ledger: Ledger, settings: Settings) -> Registry:
    return Registry(ledger, open_blobs(settings))


def test_a_job_is_that_of_its_tenant_whatever_its_submission_says(
    acme: Holdings, other: Holdings, submission: Submission
) -> None:
    job, _ = acme.accept(submission.model_copy(update={"tenant": "other"}))
    assert acme.read(job.id).submission.tenant == "acme"
    with pytest.raises(UnknownJob):
        other.read(job.id)


def test_another_s_job_answers_as_one_that_there_is_not(
    acme: Holdings, other: Holdings, submission: Submission
) -> None:
    job, _ = acme.accept(submission)
    nobody = "0" * 32
    for act in (other.read, other.cancel, other.delete, other.events, other.ahead):
        said = []
        for name in (job.id, nobody):
            with pytest.raises(UnknownJob) as caught:
                act(name)
            said.append(caught.value.detail.replace(name, "…"))
        assert said[0] == said[1]
    assert other.find().jobs == ()
    assert acme.read(job.id) == job


def test_of_many_only_one_s_own_are_canceled(acme: Holdings, other: Holdings, submission: Submission) -> None:
    first, mine = acme.accept(submission)[0].id, other.accept(submission)[0].id
    answers = other.cancel_all([first, mine, "nobody", mine])
    assert [answer.status for answer in answers] == [None, "canceled", None, "canceled"]
    assert [type(answer.refused) for answer in answers[::2]] == [UnknownJob, UnknownJob]
    assert acme.read(first).status == "queued"


def test_lists_and_cursors_are_each_tenant_s_own(
    acme: Holdings, other: Holdings, submission: Submission
) -> None:
    mine = [tenant.accept(submission)[0].id for _ in range(3) for tenant in (acme, other)][::2]
    first = acme.find(limit=2)
    assert [job.id for job in (*first.jobs, *acme.find(limit=2, cursor=first.cursor).jobs)] == mine[::-1]
    with pytest.raises(InvalidCursor):
        other.find(limit=2, cursor=first.cursor)
    assert [job.id for job in acme.find(status="queued", method="pgd", model="digits").jobs] == mine[::-1]


def test_figures_are_each_tenant_s_own(
    ledger: Ledger, acme: Holdings, other: Holdings, submission: Submission
) -> None:
    jobs = [acme.accept(submission)[0].id for _ in range(3)]
    ledger.claim(jobs[0], "w1")
    acme.cancel(jobs[1])
    assert {status: n for status, n in acme.counts().items() if n} == {
        "queued": 1,
        "running": 1,
        "canceled": 1,
    }
    assert acme.queue().depth == 1
    assert not any(other.counts().values())
    assert other.queue() == Queue(0, 0.0)
    assert ledger.counts() == acme.counts()
    acme.delete(jobs[1])
    acme.delete(jobs[2])
    assert {status: n for status, n in acme.counts().items() if n} == {"running": 1}
    assert [job.id for job in acme.find().jobs] == jobs[:1]


def test_an_idempotency_key_is_one_s_own(acme: Holdings, other: Holdings, submission: Submission) -> None:
    first, again = (acme.accept(submission, idempotency=("key", "a"))[0] for _ in range(2))
    theirs, created = other.accept(submission, idempotency=("key", "b"))
    assert first.id == again.id != theirs.id
    assert created


def card(seed: int = 0) -> Manifest:
    data = linear_onnx(seed=seed)
    return completed(card_of(data), data)


def test_models_are_each_tenant_s_own(acme: Holdings, other: Holdings, registry: Registry) -> None:
    mine, theirs = card(0), card(1)
    acme.versions.register(mine, EXAMINED)
    for shelf in (registry, registry.of("other")):
        assert "lin" not in shelf.manifests()
        for name in ("lin", f"lin@{mine.digest[7:19]}"):
            with pytest.raises(UnknownModel) as caught:
                find(shelf, name)
            assert "named 'lin'" in caught.value.detail
    other.versions.register(theirs, EXAMINED)
    assert registry.of("acme").manifest("lin") == mine
    assert registry.of("other").manifest("lin") == theirs
    with pytest.raises(UnknownModel):
        other.versions.forget("lin", mine.digest)
    other.versions.forget("lin")
    assert registry.of("acme").versions("lin") == (mine,)


def test_equal_bytes_may_be_described_otherwise_by_another(
    acme: Holdings, other: Holdings, registry: Registry
) -> None:
    mine = card()
    theirs = mine.model_copy(update={"classes": ("left", "right", "up")[: len(mine.classes)]})
    acme.versions.register(mine, EXAMINED)
    other.versions.register(theirs, EXAMINED)
    assert registry.of("acme").manifest("lin", mine.digest) == mine
    assert registry.of("other").manifest("lin", mine.digest) == theirs


def test_only_one_s_own_jobs_keep_a_model(acme: Holdings, other: Holdings, submission: Submission) -> None:
    mine = card()
    acme.versions.register(mine, EXAMINED)
    other.versions.register(mine, EXAMINED)
    acme.accept(submission.model_copy(update={"model": ModelRef(id="lin", digest=mine.digest)}))
    with pytest.raises(ModelInUse):
        acme.versions.forget("lin")
    other.versions.forget("lin")


def test_a_worker_finds_the_model_of_the_job_s_tenant(
    acme: Holdings, registry: Registry, submission: Submission
) -> None:
    mine = card()
    acme.versions.register(mine, EXAMINED)
    job, _ = acme.accept(submission.model_copy(update={"model": ModelRef(id="lin", digest=mine.digest)}))
    assert bound(registry.of(job.submission.tenant), "lin", mine.digest) == mine


def test_nobody_counts_for_another(submission: Submission) -> None:
    card = ZOO.manifest("fashion-mnist-cnn")
    asked = {
        "kind": "certificate",
        "method": "smoothing",
        "parameters": {"rule": "e_process"},
        "model": ModelRef(id=card.id, digest=card.digest),
    }
    tenants = ("acme", "acme", "other")
    pools = [pool_of(submission.model_copy(update={**asked, "tenant": tenant})) for tenant in tenants]
    assert pools[0] == pools[1] != pools[2]


def test_equal_remote_models_have_budgets_of_their_own() -> None:
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
    cards = [Registration.parse(said).remote_manifest(tenant)[0] for tenant in ("acme", "other")]
    assert cards[0].digest != cards[1].digest


def test_news_are_told_to_their_tenant_alone(ledger: Ledger, submission: Submission) -> None:
    async def told() -> list[list[str]]:
        news = News(ledger)
        news.start(asyncio.get_running_loop())
        with news.reader("acme") as acme, news.reader("other") as other:
            with ledger.watch() as changes:
                jobs = [Holdings.of(ledger, name).accept(submission)[0] for name in ("acme", "other")]
                ledger.claim(jobs[0].id, "w1")
                ledger.report(jobs[0].id, 1, Progress(done=1, total=2))
                Holdings.of(ledger, "other").delete(jobs[1].id)
                heard = itertools.islice(changes, 5)
                for change in heard:
                    if news.hear(change):
                        with suppress(UnknownJob):
                            news.show(ledger.read(change.id))
            news.tick()
            await asyncio.sleep(0.01)
            return [[item.event async for item in everything(reader)] for reader in (acme, other)]

    assert asyncio.run(told()) == [["job", "progress"], ["deleted"]]


async def everything(reader: Reader) -> AsyncIterator[Item]:
    """What a reader is to be told at the moment."""
    with suppress(TimeoutError):
        while item := await asyncio.wait_for(reader.next(), 0.05):
            yield item
