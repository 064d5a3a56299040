"""Finding jobs: filters, pages, cursors, and what it costs among thousands."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from touchstone.errors import InvalidCursor
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, ModelRef, Submission
from touchstone.ledger.replies import JobPage
from touchstone.ledger.tenant_ledger import TenantLedger

METHODS = ("pgd", "fgsm", "square")
MODELS = ("digits", "fashion")


def variants(submission: Submission) -> itertools.cycle[Submission]:
    return itertools.cycle(
        submission.model_copy(update={"method": method, "model": ModelRef(id=model, digest="d")})
        for method, model in itertools.product(METHODS, MODELS)
    )


def accept_jobs(ledger: Ledger, submission: Submission, count: int) -> list[str]:
    """Accept many jobs; their ids from new to old."""
    jobs = [ledger.accept(kind)[0].id for kind, _ in zip(variants(submission), range(count), strict=False)]
    return jobs[::-1]


def find_all_pages(ledger: Ledger, **filters: Any) -> list[JobPage]:
    pages = [TenantLedger.of(ledger, LOCAL).find(**filters)]
    while pages[-1].cursor:
        pages.append(TenantLedger.of(ledger, LOCAL).find(**filters, cursor=pages[-1].cursor))
    return pages


def ids(*pages: JobPage) -> list[str]:
    return [job.id for page in pages for job in page.jobs]


def test_pages_hold_every_job_once_newest_first(ledger: Ledger, submission: Submission) -> None:
    jobs = accept_jobs(ledger, submission, 25)
    pages = find_all_pages(ledger, limit=10)
    assert [len(page.jobs) for page in pages] == [10, 10, 5]
    assert ids(*pages) == jobs


def test_full_last_page_has_no_cursor(ledger: Ledger, submission: Submission) -> None:
    accept_jobs(ledger, submission, 10)
    assert TenantLedger.of(ledger, LOCAL).find(limit=10).cursor is None
    assert TenantLedger.of(ledger, LOCAL).find(limit=9).cursor is not None


def test_empty_ledger_returns_an_empty_page(ledger: Ledger) -> None:
    assert TenantLedger.of(ledger, LOCAL).find() == JobPage((), None)
    assert TenantLedger.of(ledger, LOCAL).find(status="failed", method="pgd") == JobPage((), None)


def test_filters_can_be_combined(ledger: Ledger, submission: Submission) -> None:
    jobs = accept_jobs(ledger, submission, 60)
    for name in jobs[:30]:
        ledger.cancel(name)
    pages = find_all_pages(ledger, status="canceled", kind="attack", method="pgd", model="digits", limit=2)
    found = [job for page in pages for job in page.jobs]
    assert ids(*pages) == [
        name for name in jobs[:30] if name in ids(*find_all_pages(ledger, method="pgd", model="digits"))
    ]
    assert len(found) == 5
    assert all(job.submission.method == "pgd" and job.status == "canceled" for job in found)
    assert TenantLedger.of(ledger, LOCAL).find(method="unheard-of").jobs == ()
    assert TenantLedger.of(ledger, LOCAL).find(kind="prediction").jobs == ()


def test_new_jobs_do_not_shift_later_pages(ledger: Ledger, submission: Submission) -> None:
    jobs = accept_jobs(ledger, submission, 20)
    first = TenantLedger.of(ledger, LOCAL).find(limit=10)
    accept_jobs(ledger, submission, 5)
    assert ids(first, TenantLedger.of(ledger, LOCAL).find(limit=10, cursor=first.cursor)) == jobs


def test_deleting_the_job_at_the_cursor_keeps_the_cursor_valid(
    ledger: Ledger, submission: Submission
) -> None:
    jobs = accept_jobs(ledger, submission, 20)
    first = TenantLedger.of(ledger, LOCAL).find(limit=10)
    ledger.cancel(jobs[9])
    ledger.delete(jobs[9])
    assert ids(TenantLedger.of(ledger, LOCAL).find(limit=10, cursor=first.cursor)) == jobs[10:]


def test_forged_or_mismatched_cursor_is_refused(ledger: Ledger, submission: Submission) -> None:
    accept_jobs(ledger, submission, 20)
    cursor = TenantLedger.of(ledger, LOCAL).find(limit=5).cursor
    assert cursor is not None
    flipped = ("B" if cursor[0] == "A" else "A") + cursor[1:]
    for forged in (flipped, cursor[:-1], cursor + "A", "x", "ü", "%00", "A" * 10_000):
        with pytest.raises(InvalidCursor):
            TenantLedger.of(ledger, LOCAL).find(limit=5, cursor=forged)
    with pytest.raises(InvalidCursor):
        TenantLedger.of(ledger, LOCAL).find(method="pgd", limit=5, cursor=cursor)


def test_cursor_is_valid_in_another_ledger_client(
    ledger: Ledger, settings: Any, submission: Submission
) -> None:
    jobs = accept_jobs(ledger, submission, 10)
    cursor = TenantLedger.of(ledger, LOCAL).find(limit=5).cursor
    other = Ledger(settings.redis_url, settings)
    assert ids(TenantLedger.of(other, LOCAL).find(limit=5, cursor=cursor)) == jobs[5:]
    other.close()


def test_rare_job_among_thousands_is_found_with_few_commands(
    ledger: Ledger, settings: Any, submission: Submission
) -> None:
    """Two large indexes whose overlap is one job, the oldest: the worst case of the search."""
    rare, _ = ledger.accept(submission.model_copy(update={"method": "pgd"}))
    ledger.cancel(rare.id)
    plain = [submission.model_copy(update={"method": method}) for method in ("pgd", "fgsm")]
    jobs = [ledger.accept(plain[position % 2])[0].id for position in range(2200)]
    ledger.cancel_all(jobs[1::2])
    with redis.Redis.from_url(settings.redis_url) as client:
        before = count_commands(client)
        assert ids(TenantLedger.of(ledger, LOCAL).find(status="canceled", method="pgd", limit=1)) == [rare.id]
        assert count_commands(client) - before < 1500, "reading each of 1100 jobs"


def test_page_cost_does_not_depend_on_its_position(
    ledger: Ledger, settings: Any, submission: Submission
) -> None:
    accept_jobs(ledger, submission, 600)
    cursor, costs = None, []
    with redis.Redis.from_url(settings.redis_url) as client:
        for _ in range(11):
            before = count_commands(client)
            cursor = TenantLedger.of(ledger, LOCAL).find(limit=50, cursor=cursor).cursor
            costs.append(count_commands(client) - before)
    assert max(costs) < 1.2 * min(costs), costs


def test_search_with_few_matches_ends_early_and_can_be_continued(
    ledger: Ledger, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("touchstone.ledger.search._SCAN_LIMIT", 3)
    rare, _ = ledger.accept(submission)
    ledger.cancel(rare.id)
    for _ in range(100):
        ledger.accept(submission)
    for _ in range(100):
        ledger.cancel(ledger.accept(submission.model_copy(update={"method": "fgsm"}))[0].id)
    pages = find_all_pages(ledger, status="canceled", method="pgd", limit=5)
    assert len(pages) > 1
    assert ids(*pages) == [rare.id]


HOUR = datetime(2026, 11, 22, 9, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def set_acceptance_times(url: str, jobs: list[str]) -> None:
    """Pretend that these jobs, from new to old, were accepted a minute apart, the oldest at `HOUR`."""
    with redis.Redis.from_url(url) as client, client.pipeline() as pipe:
        for minute, job in enumerate(reversed(jobs)):
            moment = HOUR + timedelta(minutes=minute)
            pipe.hset(f"ts:job:{job}", "created_at", int(moment.timestamp() * 1000))
        pipe.execute()


@pytest.fixture
def dated_jobs(ledger: Ledger, settings: Any, submission: Submission) -> list[str]:
    """Thirty jobs, a minute apart, from old to new."""
    jobs = accept_jobs(ledger, submission, 30)
    set_acceptance_times(settings.redis_url, jobs)
    return jobs[::-1]


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (None, None, (0, 30)),
        (0, None, (0, 30)),
        (5, None, (5, 30)),
        (5, 6, (5, 6)),
        (5, 5, (5, 5)),
        (4.5, 7.5, (5, 8)),
        (None, 7, (0, 7)),
        (29, None, (29, 30)),
        (30, None, (30, 30)),
        (-9, 0, (0, 0)),
        (None, 99, (0, 30)),
        (7, 5, (0, 0)),
    ],
)
def test_jobs_are_found_by_their_acceptance_time(
    ledger: Ledger, dated_jobs: list[str], since: float | None, until: float | None, expected: tuple[int, int]
) -> None:
    bounds = {
        name: HOUR + timedelta(minutes=minute)
        for name, minute in (("since", since), ("until", until))
        if minute is not None
    }
    assert ids(*find_all_pages(ledger, limit=4, **bounds)) == dated_jobs[slice(*expected)][::-1]


def test_time_bounds_are_exact_to_the_microsecond_in_any_time_zone(
    ledger: Ledger, dated_jobs: list[str]
) -> None:
    second = HOUR + timedelta(minutes=1)
    just_after = second + timedelta(microseconds=1)
    assert ids(TenantLedger.of(ledger, LOCAL).find(since=second, until=just_after)) == [dated_jobs[1]]
    assert ids(TenantLedger.of(ledger, LOCAL).find(since=just_after, until=second + MILLISECOND)) == []
    elsewhere = second.astimezone(datetime.fromisoformat("2026-01-01T00:00:00+05:30").tzinfo)
    assert ids(TenantLedger.of(ledger, LOCAL).find(since=elsewhere, until=elsewhere + MILLISECOND)) == [
        dated_jobs[1]
    ]
    ends = {"since": datetime.min.replace(tzinfo=UTC), "until": datetime.max.replace(tzinfo=UTC)}
    assert len(ids(TenantLedger.of(ledger, LOCAL).find(**ends))) == 30


def test_time_bounds_combine_with_filters_and_survive_deletions(
    ledger: Ledger, dated_jobs: list[str]
) -> None:
    bounds = {"since": HOUR + timedelta(minutes=6), "until": HOUR + timedelta(minutes=24)}
    fitting = [
        job
        for job in dated_jobs[6:24][::-1]
        if ledger.read(job).submission.method == "fgsm" and ledger.read(job).submission.model.id == "digits"
    ]
    assert len(fitting) == 3
    found = find_all_pages(ledger, method="fgsm", model="digits", limit=1, **bounds)
    assert ids(*found) == fitting
    first = TenantLedger.of(ledger, LOCAL).find(limit=5, **bounds)
    for job in (dated_jobs[6], dated_jobs[23], dated_jobs[18], dated_jobs[15]):
        ledger.delete(job)
    assert ids(TenantLedger.of(ledger, LOCAL).find(limit=3, cursor=first.cursor, **bounds)) == [
        dated_jobs[17],
        dated_jobs[16],
        dated_jobs[14],
    ]


def test_cursor_is_valid_only_for_its_time_bounds(ledger: Ledger, dated_jobs: list[str]) -> None:
    bounds = {"since": HOUR, "until": HOUR + timedelta(minutes=20)}
    cursor = TenantLedger.of(ledger, LOCAL).find(limit=5, **bounds).cursor
    assert (
        ids(TenantLedger.of(ledger, LOCAL).find(limit=5, cursor=cursor, **bounds)) == dated_jobs[10:15][::-1]
    )
    for other in ({}, {"since": HOUR}, {**bounds, "since": HOUR + MILLISECOND}, {**bounds, "until": HOUR}):
        with pytest.raises(InvalidCursor):
            TenantLedger.of(ledger, LOCAL).find(limit=5, cursor=cursor, **other)


def test_time_bounds_are_found_without_reading_all_jobs(
    ledger: Ledger, settings: Any, submission: Submission
) -> None:
    """Among thousands, a time bound costs a few reads, and jobs outside the bounds cost none."""
    jobs = accept_jobs(ledger, submission, 1200)
    set_acceptance_times(settings.redis_url, jobs)
    bounds = {"since": HOUR + timedelta(minutes=600), "until": HOUR + timedelta(minutes=610)}
    fitting = set(ids(*find_all_pages(ledger, status="queued", method="pgd", model="digits", limit=200)))
    with redis.Redis.from_url(settings.redis_url) as client:
        before = count_commands(client)
        found = ids(
            TenantLedger.of(ledger, LOCAL).find(status="queued", method="pgd", model="digits", **bounds)
        )
        assert count_commands(client) - before < 150
    assert found == [job for job in jobs[590:600] if job in fitting]
    assert found


def count_commands(client: redis.Redis) -> int:
    """Commands that the server has run, those of scripts included."""
    stats: Any = client.info("commandstats")
    return sum(entry["calls"] for entry in stats.values())
