"""Whether a job would be accepted is asked only where that is not known from the last acceptance."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from touchstone.errors import BudgetSpent, QueueFull, StorageFull, TenantQueueFull
from touchstone.ledger import headroom
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.quotas import Quota, QuotaUsage
from touchstone.ledger.records import Submission
from touchstone.settings import Settings

USAGE = QuotaUsage(passes=10, input_bytes=100, output_bytes=1000)
LARGE = 10**12


@pytest.fixture
def open_ledger(settings: Settings) -> Iterator[Callable[..., Ledger]]:
    opened: list[Ledger] = []

    def open_with(**changes: int) -> Ledger:
        opened.append(Ledger(str(settings.redis_url), settings.model_copy(update=changes)))
        return opened[-1]

    yield open_with
    for ledger in opened:
        ledger.close()


@pytest.fixture
def theirs(submission: Submission) -> Submission:
    return submission.model_copy(update={"tenant": "them"})


def count_questions(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scripts that run from now on."""
    ran: list[str] = []
    run = ledger.scripts.run

    def note(name: str, *args: str | int | float) -> object:
        ran.append(name)
        return run(name, *args)

    monkeypatch.setattr(ledger.scripts, "run", note)
    return ran


def test_nothing_is_asked_while_there_is_plenty(
    ledger: Ledger, theirs: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = count_questions(ledger, monkeypatch)
    ledger.check(theirs, usage=USAGE)
    assert len(ran) == 1, "of the first job nothing is known"
    ledger.accept(theirs, usage=USAGE)
    ledger.check(theirs, usage=USAGE)
    assert len(ran) == 2
    ledger.check(theirs.model_copy(update={"tenant": "others"}), usage=USAGE)
    assert len(ran) == 3, "of other tenants neither"
    ledger.check(theirs, usage=USAGE, idempotency=("key", "digest"))
    assert len(ran) == 4, "nor whether a key was used before"
    monkeypatch.setattr(headroom.time, "monotonic", lambda: 1e12)
    ledger.check(theirs, usage=USAGE)
    assert len(ran) == 5, "nor how it is later"


@pytest.mark.parametrize(
    ("limit", "quota", "usage"),
    [
        (headroom.JOBS, None, USAGE),
        (LARGE, Quota(waiting=headroom.JOBS), USAGE),
        (LARGE, Quota(passes=headroom.JOBS * USAGE.passes), USAGE),
        (LARGE, Quota(storage=headroom.JOBS * 1100), USAGE),
        (LARGE, Quota(passes=LARGE), QuotaUsage(passes=LARGE // headroom.JOBS)),
        (LARGE, Quota(storage=LARGE), QuotaUsage(output_bytes=LARGE // headroom.JOBS)),
    ],
)
def test_it_is_asked_where_a_thousand_more_would_not_fit(
    open_ledger: Callable[..., Ledger],
    theirs: Submission,
    limit: int,
    quota: Quota | None,
    usage: QuotaUsage,
) -> None:
    ledger = open_ledger(queue_limit=limit)
    ledger.quotas.set("them", quota)
    ledger.accept(theirs, usage=USAGE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        ran = count_questions(ledger, monkeypatch)
        ledger.check(theirs, usage=usage)
    assert ran == ["jobs/accept"]


@pytest.mark.parametrize(
    ("changes", "quota", "refusal"),
    [
        ({"queue_limit": 3}, None, QueueFull),
        ({}, Quota(waiting=3), TenantQueueFull),
        ({}, Quota(passes=3 * USAGE.passes), BudgetSpent),
        ({}, Quota(storage=3 * USAGE.output_bytes + USAGE.input_bytes), StorageFull),
    ],
)
def test_limits_are_exact(
    open_ledger: Callable[..., Ledger],
    theirs: Submission,
    changes: dict[str, int],
    quota: Quota | None,
    refusal: type[Exception],
) -> None:
    ledger = open_ledger(**changes)
    ledger.quotas.set("them", quota)
    for _ in range(3):
        ledger.check(theirs, usage=USAGE)
        ledger.accept(theirs, usage=USAGE)
    for refused in (ledger.check, ledger.accept):
        with pytest.raises(refusal):
            refused(theirs, usage=USAGE)


def test_it_is_asked_again_after_the_quota_was_set(ledger: Ledger, theirs: Submission) -> None:
    ledger.accept(theirs, usage=USAGE)
    ledger.quotas.set("them", Quota(waiting=1))
    with pytest.raises(TenantQueueFull):
        ledger.check(theirs, usage=USAGE)


def test_it_is_asked_again_after_a_refusal(
    ledger: Ledger, theirs: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.accept(theirs, usage=USAGE)
    ledger.client.hset("ts:allowances", "them", Quota(waiting=1).model_dump_json())
    ledger.quotas._cache.clear()  # as another process, which has yet to hear of the new quota
    ledger.check(theirs, usage=USAGE)
    with pytest.raises(TenantQueueFull):
        ledger.accept(theirs, usage=USAGE)
    ran = count_questions(ledger, monkeypatch)
    with pytest.raises(TenantQueueFull):
        ledger.check(theirs, usage=USAGE)
    assert ran == ["jobs/accept"]
