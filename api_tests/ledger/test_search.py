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
from touchstone.ledger.replies import Page
from touchstone.ledger.tenant_ledger import Holdings

METHODS = ("pgd", "fgsm", "square")
MODELS = ("digits", "fashion")


def variants(submission: Submission) -> itertools.cycle[Submission]:
    return itertools.cycle(
        submission.model_copy(update={"method": method, "model": ModelRef(id=model, digest="d")})
        for method, model in itertools.product(METHODS, MODELS)
    )


def fill(ledger: Ledger, submission: Submission, count: int) -> list[str]:
    """Accept many jobs; their ids from new to old."""
    jobs = [ledger.accept(kind)[0].id for kind, _ in zip(variants(submission), range(count), strict=False)]
    return jobs[::-1]


def every_page(ledger: Ledger, **filters: Any) -> list[Page]:
    pages = [Holdings.of(ledger, LOCAL).find(**filters)]
    while pages[-1].cursor:
        pages.append(Holdings.of(ledger, LOCAL).find(**filters, cursor=pages[-1].cursor))
    return pages


def ids(*pages: Page) -> list[str]:
    return [job.id for page in pages for job in page.jobs]


def test_pages_hold_every_job_once_newest_first(ledger: Ledger, submission: Submission) -> None:
    jobs = fill(ledger, submission, 25)
    pages = every_page(ledger, limit=10)
    assert [len(page.jobs) for page in pages] == [10, 10, 5]
    assert ids(*pages) == jobs


def test_a_full_last_page_has_no_cursor(ledger: Ledger, submission: Submission) -> None:
    fill(ledger, submission, 10)
    assert Holdings.of(ledger, LOCAL).find(limit=10).cursor is None
    assert Holdings.of(ledger, LOCAL).find(limit=9).cursor is not None


def test_an_empty_ledger_has_an_empty_page(ledger: Ledger) -> None:
    assert Holdings.of(ledger, LOCAL).find() == Page((), None)
    assert Holdings.of(ledger, LOCAL).find(status="failed", method="pgd") == Page((), None)


def test_filters_combine(ledger: Ledger, submission: Submission) -> None:
    jobs = fill(ledger, submission, 60)
    for name in jobs[:30]:
        ledger.cancel(name)
    pages = every_page(ledger, status="canceled", kind="attack", method="pgd", model="digits", limit=2)
    found = [job for page in pages for job in page.jobs]
    assert ids(*pages) == [
        name for name in jobs[:30] if name in ids(*every_page(ledger, method="pgd", model="digits"))
    ]
    assert len(found) == 5
    assert all(job.submission.method == "pgd" and job.status == "canceled" for job in found)
    assert Holdings.of(ledger, LOCAL).find(method="unheard-of").jobs == ()
    assert Holdings.of(ledger, LOCAL).find(kind="prediction").jobs == ()


def test_new_jobs_do_not_shift_later_pages(ledger: Ledger, submission: Submission) -> None:
    jobs = fill(ledger, submission, 20)
    first = Holdings.of(ledger, LOCAL).find(limit=10)
    fill(ledger, submission, 5)
    assert ids(first, Holdings.of(ledger, LOCAL).find(limit=10, cursor=first.cursor)) == jobs


def test_deleting_the_job_at_the_cursor_does_not_break_it(ledger: Ledger, submission: Submission) -> None:
    jobs = fill(ledger, submission, 20)
    first = Holdings.of(ledger, LOCAL).find(limit=10)
    ledger.cancel(jobs[9])
    ledger.delete(jobs[9])
    assert ids(Holdings.of(ledger, LOCAL).find(limit=10, cursor=first.cursor)) == jobs[10:]


def test_a_forged_or_foreign_cursor_is_refused(ledger: Ledger, submission: Submission) -> None:
    fill(ledger, submission, 20)
    cursor = Holdings.of(ledger, LOCAL).find(limit=5).cursor
    assert cursor is not None
    flipped = ("B" if cursor[0] == "A" else "A") + cursor[1:]
    for forged in (flipped, cursor[:-1], cursor + "A", "x", "ü", "%00", "A" * 10_000):
        with pytest.raises(InvalidCursor):
            Holdings.of(ledger, LOCAL).find(limit=5, cursor=forged)
    with pytest.raises(InvalidCursor):
        Holdings.of(ledger, LOCAL).find(method="pgd", limit=5, cursor=cursor)


def test_another_process_reads_the_cursor(ledger: Ledger, settings: Any, submission: Submission) -> None:
    jobs = fill(ledger, submission, 10)
    cursor = Holdings.of(ledger, LOCAL).find(limit=5).cursor
    other = Ledger(settings.redis_url, settings)
    assert ids(Holdings.of(other, LOCAL).find(limit=5, cursor=cursor)) == jobs[5:]
    other.close()


def test_a_rare_job_among_thousands_is_found_quickly(
    ledger: Ledger, settings: Any, submission: Submission
) -> None:
    """Two large indexes whose overlap is one job, the oldest: the worst case of the walk."""
    rare, _ = ledger.accept(submission.model_copy(update={"method": "pgd"}))
    ledger.cancel(rare.id)
    plain = [submission.model_copy(update={"method": method}) for method in ("pgd", "fgsm")]
    jobs = [ledger.accept(plain[place % 2])[0].id for place in range(2200)]
    ledger.cancel_all(jobs[1::2])
    with redis.Redis.from_url(settings.redis_url) as client:
        before = calls(client)
        assert ids(Holdings.of(ledger, LOCAL).find(status="canceled", method="pgd", limit=1)) == [rare.id]
        assert calls(client) - before < 1500, "a look at each of 1100 jobs"


def test_a_page_costs_the_same_anywhere(ledger: Ledger, settings: Any, submission: Submission) -> None:
    fill(ledger, submission, 600)
    cursor, costs = None, []
    with redis.Redis.from_url(settings.redis_url) as client:
        for _ in range(11):
            before = calls(client)
            cursor = Holdings.of(ledger, LOCAL).find(limit=50, cursor=cursor).cursor
            costs.append(calls(client) - before)
    assert max(costs) < 1.2 * min(costs), costs


def test_a_walk_that_finds_nothing_ends_and_can_be_continued(
    ledger: Ledger, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("touchstone.ledger.search._LOOKS", 3)
    rare, _ = ledger.accept(submission)
    ledger.cancel(rare.id)
    for _ in range(100):
        ledger.accept(submission)
    for _ in range(100):
        ledger.cancel(ledger.accept(submission.model_copy(update={"method": "fgsm"}))[0].id)
    pages = every_page(ledger, status="canceled", method="pgd", limit=5)
    assert len(pages) > 1
    assert ids(*pages) == [rare.id]


HOUR = datetime(2026, 11, 22, 9, tzinfo=UTC)
TICK = timedelta(milliseconds=1)


def date(url: str, jobs: list[str]) -> None:
    """Pretend that these jobs, from new to old, were accepted a minute apart, the oldest at `HOUR`."""
    with redis.Redis.from_url(url) as client, client.pipeline() as pipe:
        for minute, job in enumerate(reversed(jobs)):
            moment = HOUR + timedelta(minutes=minute)
            pipe.hset(f"ts:job:{job}", "created_at", int(moment.timestamp() * 1000))
        pipe.execute()


@pytest.fixture
def dated(ledger: Ledger, settings: Any, submission: Submission) -> list[str]:
    """Thirty jobs, a minute apart, from old to new."""
    jobs = fill(ledger, submission, 30)
    date(settings.redis_url, jobs)
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
def test_jobs_are_found_by_when_they_were_accepted(
    ledger: Ledger, dated: list[str], since: float | None, until: float | None, expected: tuple[int, int]
) -> None:
    bounds = {
        name: HOUR + timedelta(minutes=minute)
        for name, minute in (("since", since), ("until", until))
        if minute is not None
    }
    assert ids(*every_page(ledger, limit=4, **bounds)) == dated[slice(*expected)][::-1]


def test_bounds_are_exact_to_the_microsecond_and_in_any_zone(ledger: Ledger, dated: list[str]) -> None:
    second = HOUR + timedelta(minutes=1)
    just_after = second + timedelta(microseconds=1)
    assert ids(Holdings.of(ledger, LOCAL).find(since=second, until=just_after)) == [dated[1]]
    assert ids(Holdings.of(ledger, LOCAL).find(since=just_after, until=second + TICK)) == []
    elsewhere = second.astimezone(datetime.fromisoformat("2026-01-01T00:00:00+05:30").tzinfo)
    assert ids(Holdings.of(ledger, LOCAL).find(since=elsewhere, until=elsewhere + TICK)) == [dated[1]]
    ends = {"since": datetime.min.replace(tzinfo=UTC), "until": datetime.max.replace(tzinfo=UTC)}
    assert len(ids(Holdings.of(ledger, LOCAL).find(**ends))) == 30


def test_times_combine_with_other_filters_and_survive_deletions(ledger: Ledger, dated: list[str]) -> None:
    bounds = {"since": HOUR + timedelta(minutes=6), "until": HOUR + timedelta(minutes=24)}
    fitting = [
        job
        for job in dated[6:24][::-1]
        if ledger.read(job).submission.method == "fgsm" and ledger.read(job).submission.model.id == "digits"
    ]
    assert len(fitting) == 3
    found = every_page(ledger, method="fgsm", model="digits", limit=1, **bounds)
    assert ids(*found) == fitting
    first = Holdings.of(ledger, LOCAL).find(limit=5, **bounds)
    for job in (dated[6], dated[23], dated[18], dated[15]):
        ledger.delete(job)
    assert ids(Holdings.of(ledger, LOCAL).find(limit=3, cursor=first.cursor, **bounds)) == [
        dated[17],
        dated[16],
        dated[14],
    ]


def test_a_cursor_is_good_for_its_times_only(ledger: Ledger, dated: list[str]) -> None:
    bounds = {"since": HOUR, "until": HOUR + timedelta(minutes=20)}
    cursor = Holdings.of(ledger, LOCAL).find(limit=5, **bounds).cursor
    assert ids(Holdings.of(ledger, LOCAL).find(limit=5, cursor=cursor, **bounds)) == dated[10:15][::-1]
    for other in ({}, {"since": HOUR}, {**bounds, "since": HOUR + TICK}, {**bounds, "until": HOUR}):
        with pytest.raises(InvalidCursor):
            Holdings.of(ledger, LOCAL).find(limit=5, cursor=cursor, **other)


def test_times_are_found_without_looking_at_all_jobs(
    ledger: Ledger, settings: Any, submission: Submission
) -> None:
    """Among thousands, a time costs a few looks, and jobs outside the times cost none at all."""
    jobs = fill(ledger, submission, 1200)
    date(settings.redis_url, jobs)
    bounds = {"since": HOUR + timedelta(minutes=600), "until": HOUR + timedelta(minutes=610)}
    fitting = set(ids(*every_page(ledger, status="queued", method="pgd", model="digits", limit=200)))
    with redis.Redis.from_url(settings.redis_url) as client:
        before = calls(client)
        found = ids(Holdings.of(ledger, LOCAL).find(status="queued", method="pgd", model="digits", **bounds))
        assert calls(client) - before < 150
    assert found == [job for job in jobs[590:600] if job in fitting]
    assert found


def calls(client: redis.Redis) -> int:
    """Commands that the server has run, those of scripts included."""
    stats: Any = client.info("commandstats")
    return sum(entry["calls"] for entry in stats.values())
